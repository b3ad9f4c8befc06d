"""The map over worker processes: order, memory, and what a dead or slow worker costs."""

import faulthandler
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import pytest

from ldm.corpora import workers
from ldm.corpora.workers import Lost, ordered_map


def _map(
    function: Callable[[int], Any],
    items: Iterable[int],
    num_workers: int = 2,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    return ordered_map(function, items, num_workers, 1.5, lambda item, loss: (item, loss), is_stopped)


def _slow_early(number: int) -> int:
    time.sleep(random.Random(number).random() * 1e-4 * (200 - number))
    return number


def test_results_keep_their_order_and_few_items_are_held() -> None:
    items = iter(range(3000))
    results = _map(abs, items)
    assert next(results) == 0
    assert next(items) <= 8 * 128, "only a few chunks are read ahead"
    assert len(list(results)) == 2998
    assert list(_map(_slow_early, range(200))) == list(range(200))
    assert list(_map(abs, [])) == [] == list(_map(abs, [], num_workers=0))


@pytest.fixture
def few_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost chunk is tried item by item, each in a fork of this process, which may be large."""
    monkeypatch.setattr(workers, "_CHUNK", 16)


def _dangerous(number: int) -> int:
    if number == 70:
        faulthandler.disable()  # its report would look like a failure
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 150:
        time.sleep(60)
    if number == 151:
        os._exit(3)
    if number == 152:
        raise MemoryError
    return number


@pytest.mark.usefixtures("few_in_a_process")
def test_a_dead_or_slow_worker_costs_one_item() -> None:
    results = list(_map(_dangerous, range(300)))
    lost = {
        70: Lost("CRASHED", "SIGSEGV"),
        150: Lost("TOO_SLOW", "more than 1.5 s"),
        151: Lost("CRASHED", "exit code 3"),
        152: Lost("CRASHED", "not enough memory"),
    }
    assert results == [(number, lost[number]) if number in lost else number for number in range(300)]


@pytest.mark.usefixtures("few_in_a_process")
def test_workers_that_others_kill_cost_nothing() -> None:
    """The system may kill any process when memory is short. Whatever a worker was doing, its items are tried again."""
    me, draw = psutil.Process(), random.Random(0)
    results: list[int] = []
    for result in _map(_some_work, range(500)):
        results.append(len(result))
        for child in me.children() if len(results) % 33 == 1 else []:
            if draw.random() < 0.5:
                child.kill()
    assert results == [100_000] * 500


def _some_work(number: int) -> bytes:
    time.sleep(1e-4)
    return bytes(100_000)


def _fail(number: int) -> int:
    raise ValueError(f"a bug at {number}")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bug_is_not_a_lost_item(num_workers: int) -> None:
    with pytest.raises(ValueError, match="a bug at 5"):
        list(_map(_fail, [5], num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stop_ends_the_map_and_its_processes(num_workers: int) -> None:
    results: list[int] = []
    for result in _map(abs, iter(int, 1), num_workers, lambda: len(results) > 200):
        results.append(result)
    assert 200 < len(results) < 1000
    _, alive = psutil.wait_procs(psutil.Process().children(), timeout=10)
    assert alive == []


def _takes_a_quarter(number: int) -> int:
    time.sleep(0.25)
    return number


@pytest.mark.usefixtures("few_in_a_process")
def test_slow_items_of_a_chunk_are_not_too_slow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen of them take longer than one may; none is begun twice or alone."""
    alone: list[object] = []
    real = workers._alone

    def spy(*given: Any) -> Any:
        alone.append(given)
        return real(*given)

    monkeypatch.setattr(workers, "_alone", spy)
    assert list(_map(_takes_a_quarter, range(20))) == list(range(20)) and alone == []
