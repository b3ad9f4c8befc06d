"""A map over worker processes in which a dead or too slow worker costs one item.

Each chunk of items has a process of its own, with a pipe of its own (package `pebble`). So nothing that a decoder or
the system does to one of them reaches another: no lock is shared that a dead process could hold.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, parent_process
from signal import Signals
from threading import Thread
from typing import TypeVar, cast

from pebble import ProcessExpired, concurrent

T = TypeVar("T")
R = TypeVar("R")
_CHUNK = 128
"""Items per process: starting one takes as long as cleaning a few images."""
_CHUNKS_PER_WORKER = 3
"""Chunks that may wait, done, for one before them that takes longer."""
_SECONDS_BETWEEN_LOOKS = 0.2
_TRIES = 2
"""For an item alone: the system may end any process, when memory is short."""


@dataclass(frozen=True)
class Lost:
    """Why an item has no result."""

    reason: str
    """CRASHED: its process died, each time. TOO_SLOW: it took longer than allowed."""
    detail: str


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    num_workers: int,
    max_seconds: float,
    lost: Callable[[T, Lost], R],
    is_stopped: Callable[[], bool] = lambda: False,
) -> Generator[R]:
    """`map` over at most `num_workers` processes at a time: results in the order of the items, a few chunks of which
    are in memory. The map ends early once `is_stopped`; what its processes are at then is dropped, and they end with it
    or with this process.

    num_workers: 0 = this process, which then has no protection. max_seconds: for a single item. lost: the result of an
    item whose process died or was too slow. It is asked only after the item was tried again, alone.
    """
    if num_workers == 0:
        for item in items:
            if is_stopped():
                return
            yield function(item)
        return
    iterator = iter(items)
    waiting: deque[tuple[list[T], Future[list[R]]]] = deque()
    while not is_stopped():
        running = [future for _, future in waiting if not future.done()]
        has_room = len(running) < num_workers and len(waiting) < _CHUNKS_PER_WORKER * num_workers
        if has_room and (chunk := list(islice(iterator, _CHUNK))):
            waiting.append((chunk, _start(function, chunk, max_seconds)))
        elif not waiting:
            return
        elif waiting[0][1].done():
            chunk, future = waiting.popleft()
            finished = yield from _finish(function, chunk, future, max_seconds, lost, is_stopped)
            if rest := chunk[finished:]:
                waiting.appendleft((rest, _start(function, rest, max_seconds)))
        else:
            wait(running, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)


def _start(function: Callable[[T], R], chunk: Sequence[T], max_seconds: float) -> Future[list[R]]:
    """Begin a chunk in a process of its own."""
    # Forked: a worker then needs no second import of all that this process has.
    decorate = concurrent.process(timeout=max_seconds, mp_context=get_context("fork"))
    return cast("Callable[..., Future[list[R]]]", decorate(_map_chunk))(function, chunk, max_seconds / 2)


def _finish(
    function: Callable[[T], R],
    chunk: Sequence[T],
    future: Future[list[R]],
    max_seconds: float,
    lost: Callable[[T, Lost], R],
    is_stopped: Callable[[], bool],
) -> Generator[R, None, int]:
    """Results of a chunk that is done; returns of how many of its items. If its process died or was too slow, each is
    tried alone."""
    results = _outcome(future, max_seconds)
    if not isinstance(results, Lost):
        yield from results
        return len(results)
    for item in chunk:
        result = _alone(function, item, max_seconds, is_stopped)
        if is_stopped():
            break
        yield lost(item, result) if isinstance(result, Lost) else result[0]
    return len(chunk)


def _alone(
    function: Callable[[T], R], item: T, max_seconds: float, is_stopped: Callable[[], bool], num_tries: int = _TRIES
) -> list[R] | Lost:
    future = _start(function, [item], max_seconds)
    while not future.done() and not is_stopped():
        wait([future], _SECONDS_BETWEEN_LOOKS)
    if not future.done():
        return Lost("CRASHED", "stopped")
    result = _outcome(future, max_seconds)
    is_final = not isinstance(result, Lost) or result.reason == "TOO_SLOW" or num_tries == 1
    return result if is_final else _alone(function, item, max_seconds, is_stopped, num_tries - 1)


def _outcome(future: Future[list[R]], max_seconds: float) -> list[R] | Lost:
    try:
        return future.result()
    except TimeoutError:
        return Lost("TOO_SLOW", f"more than {max_seconds:g} s")
    except MemoryError:
        return Lost("CRASHED", "not enough memory")
    except ProcessExpired as error:
        code = error.exitcode or 0
        return Lost("CRASHED", Signals(-code).name if -code in set(Signals) else f"exit code {code}")


def _map_chunk(function: Callable[[T], R], chunk: Sequence[T], seconds: float) -> list[R]:
    """Results of the items that are begun within some seconds, of the first one in any case: all together have no more
    time than one may take."""
    _end_with_parent()
    end, results = time.monotonic() + seconds, list[R]()
    for item in chunk:
        if results and time.monotonic() > end:
            break
        results.append(function(item))
    return results


def _end_with_parent() -> None:
    """End this worker with its parent: else a decoder that hangs would outlive it."""
    parent = parent_process()
    assert parent is not None, "a worker has a parent"

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
