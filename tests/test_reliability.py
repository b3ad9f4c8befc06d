"""The checks of `make reliability`, each tried a few times."""

import json
from pathlib import Path

import pytest

from tests.import_closure import ROOT
from tests.reliability import report
from tests.reliability.checks import CHECKS
from tests.reliability.safeguards import SAFEGUARDS, Safeguard
from tests.repository import Repository


@pytest.mark.parametrize("name", [name for name, check in CHECKS.items() if check.short])
def test_check(tmp_path: Path, name: str) -> None:
    check = CHECKS[name]
    result = check.run(tmp_path, check.short, 1)
    assert result.failures == ()
    assert result.passed == result.trials >= check.short


@pytest.mark.parametrize("safeguard", SAFEGUARDS, ids=lambda safeguard: safeguard.name)
def test_a_safeguard_is_where_its_removal_expects_it(safeguard: Safeguard) -> None:
    """Only a few of them are removed here, and all of them by `make reliability`."""
    assert (ROOT / safeguard.file).read_text().count(safeguard.line) == 1


def test_the_page_shows_the_counts() -> None:
    assert report.PAGE.read_text() == report.draw(CHECKS)
    for name, found in json.loads(report.COUNTS.read_text()).items():
        assert found["passed"] == found["trials"] >= CHECKS[name].full, name


def test_a_training_whose_dvc_was_killed_ends_in_the_same_lock(repository: Repository, tmp_path: Path) -> None:
    """It stops and saves its state, or is done by then. `make reliability` kills clones at any moment."""
    killed = repository.copy(tmp_path / "killed")
    lock, runs = killed.root / "dvc.lock", killed.root / "runs/train_unet"
    before = lock.read_bytes()
    command = ["dvc", "repro", "--force", "--single-item", "train_unet"]
    said = killed.interrupt(lambda: any(runs.glob("*/*")), *command, kill=True)
    assert "Running stage 'train_unet'" in said and "Updating lock file" not in said
    assert "Running stage 'train_unet'" in killed.run(*command)
    assert lock.read_bytes() == before
