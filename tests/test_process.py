"""What the processes of a launch share, on real processes."""

import os
import threading
import time
from contextlib import closing
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


def test_results_come_in_order_and_no_more_than_asked_for_are_made_ahead() -> None:
    made, may_go_on = list[int](), threading.Event()

    def square(number: int) -> int:
        if number == 0:
            may_go_on.wait(60)  # later ones are done before the first
        made.append(number)
        return number**2

    results = process.ahead(square, iter(range(20)), num_results=4, num_threads=3)
    threading.Timer(0.2, may_go_on.set).start()
    assert next(results) == 0 and made[-1] == 0 and set(made) <= {0, 1, 2, 3}
    assert list(results) == [number**2 for number in range(1, 20)] and sorted(made) == list(range(20))


def test_nothing_is_made_ahead_if_that_is_asked_for() -> None:
    made = list[int]()
    results = process.ahead(lambda number: made.append(number) or threading.current_thread(), range(3), num_results=0)
    assert next(results) is threading.main_thread() and made == [0]


def test_an_error_ahead_is_raised_in_its_place_and_ends_the_threads() -> None:
    before = threading.active_count()

    def invert(number: int) -> float:
        return 1 / (3 - number)

    results = process.ahead(invert, range(9), num_results=5, num_threads=2)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before
    with closing(process.ahead(invert, range(9), num_results=5)) as left:
        next(left)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_process_that_waits_for_ever_says_where(tmp_path: Path) -> None:
    def waits_for_ever(rank: int) -> None:
        if rank == 1:
            time.sleep(600)

    first, second = run_two(tmp_path, waits_for_ever, patience_seconds=5.0)
    assert (first.code, second.code) == (0, None)
    assert "in waits_for_ever" in second.said and "threads wait in" in second.said
