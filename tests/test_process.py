"""What the processes of a launch share, on real processes."""

import os
import time
from pathlib import Path

import pytest

from ldm.compute import process
from ldm.core import hashes
from tests.forked import run_two
from tests.toy_training import accelerator, params


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Seven files that were not changed for an hour, with their hashes, and an empty memory of files."""
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{number}.tar" for number in range(7)]
    for path in paths:
        path.write_text(path.name)
        os.utime(path, (time.time() - 3600,) * 2)
    return [(path, hashes.sha256_file(path)) for path in paths]


def test_the_processes_of_a_machine_hash_every_file_once(
    files: list[tuple[Path, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hashes.check_file

    def work(rank: int) -> None:
        def check(path: Path, sha256: str) -> None:
            with (tmp_path / f"hashed-by-{rank}").open("a") as log:
                log.write(f"{path.name}\n")
            real(path, sha256)

        monkeypatch.setattr(hashes, "check_file", check)
        both = accelerator(params())
        for _ in range(2):
            process.check_files(files, both)
            for path, sha256 in files:
                hashes.check_once(path, sha256)

    assert [each.code for each in run_two(tmp_path / "said", work)] == [0, 0]
    shares = [(tmp_path / f"hashed-by-{rank}").read_text().split() for rank in range(2)]
    assert shares == [["0.tar", "2.tar", "4.tar", "6.tar"], ["1.tar", "3.tar", "5.tar"]]


def test_damage_in_the_share_of_one_process_is_told_by_both(files: list[tuple[Path, str]], tmp_path: Path) -> None:
    files[3][0].write_text("damaged")
    files[5][0].unlink()

    def work(_: int) -> None:
        process.check_files(files, accelerator(params()))

    for each in run_two(tmp_path / "said", work):
        assert each.code == 4
        assert "3.tar: SHA-256" in each.said and "5.tar: no such file" in each.said and "4.tar" not in each.said
