"""`ldm watch`: how trainings go, as their run directories say while they run."""

import csv
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ldm.compute import state
from ldm.core import locks
from ldm.core.errors import IntegrityError
from ldm.core.progress import duration
from ldm.tools.check import sections
from ldm.training.history import CURVES, PACE, PICTURES, VALIDATION

_NUM_ROWS, _NUM_TIMED_ROWS = 5, 20
_COLUMNS = {CURVES: ["loss"], VALIDATION: [], PACE: ["samples_per_second", "data_wait", "memory_gb", "seconds"]}
"""Tables of a run directory, and columns that a headline is made of."""
_CLEAR = "\x1b[H\x1b[2J"

Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Training:
    """What a run directory says of its training. Rows are those of its tables, as text."""

    directory: Path
    holder: str | None
    """The process that works in it."""
    num_steps: int | None
    curve: Rows
    validation: Rows
    pace: Rows

    @classmethod
    def of(cls, directory: Path) -> Self:
        """Read it. FileNotFoundError: the training ends just now. IntegrityError: what it was made by, or
        a table of it, is damaged."""
        made_by = state.fingerprint_of(directory)
        tables = (_rows(directory / name, columns) for name, columns in _COLUMNS.items())
        return cls(directory, locks.holder(directory / "lock"), sections.num_steps(made_by), *tables)

    @property
    def headline(self) -> str:
        """Step, speed and time left; or where it stopped."""
        step = int(self.curve[-1]["step"]) if self.curve else 0
        done = f"{self.directory.parent.name}: step {step} of {self.num_steps}"
        if self.holder is None:
            states = state.states_of(self.directory)
            return f"{done}, not running; {f'saved as {states[-1].name}' if states else 'nothing is saved'}"
        return ", ".join([done, *self._losses(), *self._speed(step)])

    @property
    def lines(self) -> Iterator[str]:
        """All there is to say, for a screen."""
        yield self.headline
        for name, rows in (("loss curve", self.curve), ("validation", self.validation)):
            if rows:
                yield from ("", name, *_table(rows[-_NUM_ROWS:]))
        yield ""
        if pictures := sorted(self.directory.glob(PICTURES)):
            yield f"newest picture: {pictures[-1]}"
        yield f"all of it: {self.directory}"

    def _losses(self) -> list[str]:
        return [f"loss {float(self.curve[-1]['loss']):.4g}"] if self.curve else []

    def _speed(self, step: int) -> Iterator[str]:
        if not self.pace:
            return
        last, first = self.pace[-1], self.pace[-_NUM_TIMED_ROWS:][0]
        rate, wait, memory = (float(last[name]) for name in ("samples_per_second", "data_wait", "memory_gb"))
        yield from (f"{rate:.4g} samples/s", f"{wait:.0%} of the time waiting for data", f"{memory:.2f} GB")
        num_timed = int(last["step"]) - int(first["step"])
        if num_timed and self.num_steps is not None:
            seconds = (float(last["seconds"]) - float(first["seconds"])) / num_timed
            yield f"{duration(seconds * (self.num_steps - step))} left"


def trainings(root: Path, stages: Sequence[str]) -> tuple[list[Training], list[str]]:
    """Those of some stages that run now; if none does, the one that ran last. And lines about runs that are damaged."""
    found: list[tuple[float, Training]] = []
    damaged: list[str] = []
    for path in [path.parent for stage in stages for path in (root / stage).glob(f"[!.]*/{state.FINGERPRINT}")]:
        try:
            found.append((state.last_used(path), Training.of(path)))
        except FileNotFoundError:  # it ends just now
            continue
        except IntegrityError as error:
            damaged += str(error).splitlines()
    by_age = [training for _, training in sorted(found, key=lambda pair: pair[0])]
    return [training for training in by_age if training.holder is not None] or by_age[-1:], damaged


def watch(root: Path, stages: Sequence[str], seconds: float | None) -> None:
    """Print how trainings go, again whenever there is something new, until Ctrl-C: on a terminal over what was there,
    else as one more line. seconds: between two looks; None = one look.

    root: the folder of all runs.
    """
    shown: list[str] = []
    try:
        while True:
            found, damaged = trainings(root, stages)
            headlines = [training.headline for training in found] or [f"no training in {root}"]
            headlines += damaged
            if headlines != shown:
                _print(found, headlines, damaged, is_first=not shown)
                shown = headlines
            if seconds is None:
                return
            time.sleep(seconds)
    except KeyboardInterrupt:
        print("\nno longer watched; a training goes on", file=sys.stderr)


def _print(found: Sequence[Training], headlines: Sequence[str], damaged: Sequence[str], is_first: bool) -> None:
    is_screen = sys.stdout.isatty()
    whole = [line for training in found for line in (*training.lines, "")]
    lines = [*whole, *damaged] if whole and (is_screen or is_first) else headlines
    print(*[_CLEAR] * is_screen, *lines, sep="\n", flush=True)


def _rows(path: Path, names: Sequence[str]) -> Rows:
    """Rows of a table, all of which have a number in these columns; none if it is not there yet. A last row that was
    cut is left out. IntegrityError: it is damaged."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
        for row in rows:
            _check(row, names)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        found, expected = f"{type(error).__name__}: {error}", "the table that a training wrote"
        fix = f"a training that runs writes it anew with its next row; if none does: rm {path}"
        raise IntegrityError(str(path), found, expected, fix) from None
    return rows


def _check(row: Mapping[str, str], names: Sequence[str]) -> None:
    """ValueError, KeyError, TypeError: a row of a table is damaged. Cells that a row is too short for are None, and the
    key of those that it is too long for."""
    int(row["step"])
    for name in (*names, *(name for name, value in row.items() if value != "")):
        float(row[name])


def _table(rows: Rows) -> Iterator[str]:
    """Columns one below the other, aligned at the right; numbers to four digits."""
    names = list(rows[-1])
    cells = [names, *([_short(row[name]) for name in names] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
    for row in cells:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _short(text: str) -> str:
    return text if text.isdigit() or not text else f"{float(text):.4g}"
