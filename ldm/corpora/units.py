"""Units of a corpus, made once, shared by the processes of a launch, and kept in `runs/` until the shards are written
and beyond: a stopped `prepare` goes on, and a tar that is added costs its own work only."""

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any

from ldm.compute import fingerprint, ranks
from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.corpora import made, preparation
from ldm.corpora.made import Made, Sample
from ldm.corpora.pairs import Unit
from ldm.corpora.params import PrepareParams
from ldm.precompute import work
from ldm.precompute.work import Part

_MOST_ITEMS = 1024
_MOST_BYTES = 1 << 26
"""A part ends with the first of both: it is in memory as a whole, and a kill costs what was done of it."""
_PASSING = frozenset({"TOO_SLOW", "CRASHED", "UNREADABLE"})
"""Reasons of a rejection that may be gone in the next run: a busy machine, little memory, no right to read."""
_FEWEST, _FEWEST_UNITS, _HOPELESS = 1000, 8, 0.5
"""Samples, units that they are of, and the share of them that is rejected, from which on no further unit is made."""
_AROUND = frozenset(f"code.ldm/corpora/{name}.py" for name in ("preparation", "report", "units", "workers"))
"""Code that arranges samples, and changes none."""


_CODECS = ("pillow", "imagehash", "pillow-heif", "pillow-jxl-plugin")
"""Packages that make pixels, or tell them apart; the last two may be missing."""


def made_by(script: str, params: PrepareParams) -> dict[str, Any]:
    """The fingerprint of all units: the params, code and packages that make samples what they are."""
    found = fingerprint.of(script, params, {name: _version(name) for name in _CODECS})
    drawing = ("code.ldm/corpora/", "code.ldm/core/images.py")
    return {
        key: value
        for key, value in found.items()
        if not key.startswith("code.") or (key.startswith(drawing) and key not in _AROUND)
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def make(
    units: Sequence[Unit], run: Run, params: PrepareParams, num_workers: int, accelerator: Accelerator
) -> Sequence[Unit]:
    """Make all units that `run` has not kept. Returns them; or fewer, in their order, if so many samples of those are
    rejected that the rest is not worth the wait.

    Raises:
        Stopped: this process was asked to stop. What is done is kept.
    """
    num_seen = num_rejected = 0
    parts_of = partial(_parts, params=params, num_workers=num_workers)
    # Units differ in size and kind: the first ones by name, say a folder of scans, may be like none of the others.
    shuffled = sorted(units, key=lambda unit: unit.sha256)
    for start, end in _rounds(len(units), accelerator.num_processes):
        share = {unit.sha256: unit for unit in shuffled[start:end]}
        assert len(share) == end - start, "units have hashes of their own"
        counts = [0, 0]
        for part in work.keep_parts(run, share, parts_of, "prepare", "unit", accelerator, _is_lasting):
            rejected = sum("reason" in item for item in part.values["items"])
            counts[0] += rejected + sum("image" in item for item in part.values["items"])
            counts[1] += rejected
        everyone: list[list[int]] = ranks.gather(counts)
        num_seen += sum(seen for seen, _ in everyone)
        num_rejected += sum(rejected for _, rejected in everyone)
        is_enough = num_seen >= _FEWEST and _FEWEST_UNITS <= end < len(units)
        if is_enough and num_rejected > max(_HOPELESS, params.max_reject_fraction) * num_seen:
            if accelerator.is_main_process:
                seen = f"{num_rejected} of {num_seen} samples in {end} of {len(units)} units of work are rejected"
                print(f"note: prepare: {seen}, so no other is made", file=sys.stderr)
            done = {unit.sha256 for unit in shuffled[:end]}
            return [unit for unit in units if unit.sha256 in done]
    return units


def read(units: Sequence[Unit], run: Run) -> Iterator[Made]:
    """Every finished sample and rejection of the units, in order."""
    for unit in units:
        for part in work.whole(run, unit.sha256):
            yield from made.unpacked(part.tensors, part.values)


def retain(units: Sequence[Unit], run: Run) -> None:
    """Drop what was kept of other units, and of other params: the corpus is without them now."""
    work.retain_parts(run, {unit.sha256 for unit in units})


def _rounds(num_units: int, num_processes: int) -> Iterator[tuple[int, int]]:
    """Slices of the units, in each as many as in all before it: rejects are counted after each."""
    start = 0
    while start < num_units:
        end = min(num_units, max(num_processes, 2 * start))
        yield start, end
        start = end


def _is_lasting(part: Part) -> bool:
    return not any(item.get("reason") in _PASSING for item in part.values["items"])


def _parts(
    unit: Unit, start: int, is_stopped: Callable[[], bool], params: PrepareParams, num_workers: int
) -> Generator[Part]:
    """The parts of a unit from item `start` on."""
    waiting: list[Made] = []
    num_bytes = 0
    with closing(preparation.make(islice(unit.items(), start, None), params, num_workers, is_stopped)) as items:
        for item in items:
            waiting.append(item)
            num_bytes += sum(map(len, item.image.values())) if isinstance(item, Sample) else 0
            if len(waiting) == _MOST_ITEMS or num_bytes >= _MOST_BYTES:
                yield _part(waiting, is_last=False)
                waiting, num_bytes = [], 0
    is_last = not is_stopped()
    if waiting or is_last:
        yield _part(waiting, is_last)


def _part(items: Sequence[Made], is_last: bool) -> Part:
    return Part(*made.packed(items), num_items=len(items), is_last=is_last)
