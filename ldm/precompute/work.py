"""Independent units of work, shared by all processes and kept one by one: what was done before a stop is not done
again."""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

from torch import Tensor

from ldm.compute import process, ranks
from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.compute.stopping import StopRequest
from ldm.core.errors import Stopped
from ldm.core.progress import each

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Some results of a unit of work that has many, in the order of the unit."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    num_items: int
    """Results in it."""
    is_last: bool
    """Whether the unit ends with it."""


def keep_each(
    run: Run,
    work: Mapping[str, T],
    compute: Callable[[T], tuple[Mapping[str, Tensor], Mapping[str, Any]]],
    name: str,
    unit: str,
    accelerator: Accelerator,
) -> None:
    """Compute every unit of `work` that `run` has not kept, each process its share, and keep its tensors and values
    under its key. When this returns, `run.unit(key)` gives every process every unit.

    name, unit: words for the progress bar, such as "sample" and "shard".

    Raises:
        Stopped: the process was asked to stop; the current unit is finished first. Besides, what `Run.keep` raises.
    """
    for key in _share(list(work), name, unit, accelerator):
        if run.kept(key) is None:
            run.keep(key, *compute(work[key]))
    ranks.wait()


def keep_parts(
    run: Run,
    work: Mapping[str, T],
    compute: Callable[[T, int, Callable[[], bool]], Generator[Part]],
    name: str,
    unit: str,
    accelerator: Accelerator,
    is_lasting: Callable[[Part], bool] = lambda part: True,
) -> Iterator[Part]:
    """`keep_each` for units with too many results for memory, or too long to be lost by a stop: each is kept in parts.
    Every process gets the parts of its share, those of earlier runs included. In the end all processes wait for all;
    then `whole` gives every process every unit.

    compute: (unit, results to skip, whether a stop is asked for) -> its further parts, of any size. When a stop is
        asked for, it hands out what it has, and ends.
    is_lasting: whether a part of an earlier run counts; else it and what follows in its unit are computed again.

    Raises:
        Stopped: the process was asked to stop. Besides, what `Run.keep` raises.
    """
    mine = process.share_of(list(work), accelerator)
    with StopRequest() as stop:
        for key in each(mine, name, unit, len(mine), is_shown=accelerator.is_main_process):
            start, is_done = 0, False
            for part in takewhile(is_lasting, kept_parts(run, key)):
                start, is_done = start + part.num_items, part.is_last
                yield part
            if is_done:
                continue
            with closing(compute(work[key], start, lambda: stop.reason is not None)) as parts:
                for part in parts:
                    counts = {"num_items": part.num_items, "is_last": part.is_last}
                    run.keep(_part_key(key, start), part.tensors, {**part.values, **counts})
                    start += part.num_items
                    yield part
            _end_if_asked(stop, name, len(work))
    ranks.wait()


def kept_parts(run: Run, key: str) -> Iterator[Part]:
    """The parts of a unit that were kept, memory-mapped, in order, up to the first one that is missing or damaged."""
    start = 0
    while (state := run.kept(_part_key(key, start))) is not None:
        values = dict(state.values)
        part = Part(state.tensors, values, values.pop("num_items"), values.pop("is_last"))
        yield part
        if part.is_last:
            return
        start += part.num_items


def whole(run: Run, key: str) -> Iterator[Part]:
    """All parts of a unit that was kept. IntegrityError: one is gone or does not verify."""
    num_items, is_whole = 0, False
    for part in kept_parts(run, key):
        yield part
        num_items, is_whole = num_items + part.num_items, part.is_last
    if not is_whole:
        run.unit(_part_key(key, num_items))


def retain_parts(run: Run, keys: Collection[str]) -> None:
    """Drop all kept parts but those of these units, and the stage's former runs."""
    run.retain([kept for kept in run.kept_keys() if kept.rpartition("-")[0] in keys])


def _part_key(key: str, start: int) -> str:
    return f"{key}-{start:09d}"


def _share(keys: Sequence[str], name: str, unit: str, accelerator: Accelerator) -> Iterator[str]:
    mine = process.share_of(keys, accelerator)
    with StopRequest() as stop:
        for key in each(mine, name, unit, len(mine), is_shown=accelerator.is_main_process):
            yield key
            _end_if_asked(stop, name, len(keys))


def _end_if_asked(stop: StopRequest, name: str, num_units: int) -> None:
    if stop.reason is not None:
        raise Stopped(name, stop.reason, f"{num_units} units of work", "run it again: what is done is kept")
