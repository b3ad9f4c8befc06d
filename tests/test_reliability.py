"""The checks of `make reliability`, each tried a few times."""

import json
import random
from pathlib import Path

import pytest

from tests.reliability import report, sharing
from tests.reliability.checks import CHECKS
from tests.repository import Repository


@pytest.mark.parametrize("name", [name for name, check in CHECKS.items() if check.short])
def test_check(tmp_path: Path, name: str) -> None:
    check = CHECKS[name]
    result = check.run(tmp_path, check.short, 1)
    assert result.failures == ()
    assert result.passed == result.trials >= check.short


def test_the_page_shows_the_counts() -> None:
    assert report.PAGE.read_text() == report.draw(CHECKS)
    for name, found in json.loads(report.COUNTS.read_text()).items():
        assert found["passed"] == found["trials"] >= CHECKS[name].full, name


def test_a_clone_that_is_killed_on_the_way_has_the_same_lock(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    killed = sharing.short_clone(tmp_path / "killed")
    assert sharing.repro_with_kills(killed, 2, random.Random(0)) == 2
    assert (killed.root / "dvc.lock").read_bytes() == (repository.root / "dvc.lock").read_bytes()
