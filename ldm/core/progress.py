"""Progress of long work: a bar on a terminal, else a plain line now and then, for logs."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_SECONDS_TO_FIRST_LINE, _SECONDS_BETWEEN_LINES = 10.0, 30.0


def count(number: int, noun: str) -> str:
    """Such as "1 file", "2 files", "2 batches". noun: in the singular."""
    return f"{number} {noun if number == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("ch", "sh", "s", "x")) else "s")


class Progress:
    """A context manager that reports on stderr: pieces done and in all, pace, time left, and the last numbers of
    `note`.

    Where stderr is not a terminal: one line after 10 seconds, then one every 30 seconds, and one at the end if all went
    well; short work without numbers prints nothing.
    """

    def __init__(self, name: str, unit: str, total: int | None, *, done: int = 0, is_shown: bool = True) -> None:
        """unit: its name in the singular. total: None = unknown. done: pieces done earlier. is_shown: False on all
        processes but the first."""
        self._name, self._unit, self._total = name, unit, total
        self._done = self._before = done
        self._is_shown = is_shown
        self._notes: dict[str, float] = {}
        self._start = time.monotonic()
        self._next_line = self._start + _SECONDS_TO_FIRST_LINE
        self._has_printed = False
        is_bar = is_shown and sys.stderr.isatty()
        self._bar = tqdm(desc=name, total=total, initial=done, unit=f" {_plural(unit)}") if is_bar else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._done > self._before and (self._has_printed or self._notes):
            self._print(f"in {duration(time.monotonic() - self._start)}")

    def advance(self) -> None:
        """One more piece is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif (now := time.monotonic()) >= self._next_line:
            self._next_line = now + _SECONDS_BETWEEN_LINES
            self._print(self._pace(now - self._start))

    def note(self, **numbers: float) -> None:
        """Numbers to show, such as the loss, until the next ones."""
        self._notes = numbers
        if self._bar is not None:
            self._bar.set_postfix({name: f"{number:.4g}" for name, number in numbers.items()}, refresh=False)

    def _pace(self, seconds: float) -> str:
        done = self._done - self._before
        is_fast = done >= seconds
        units = _plural(self._unit)
        pace = f"{done / seconds:.1f} {units}/s" if is_fast else f"{seconds / done:.1f} s per {self._unit}"
        if self._total is None:
            return pace
        return f"{pace}, {duration((self._total - self._done) * seconds / done)} left"

    def _print(self, pace: str) -> None:
        self._has_printed = True
        if not self._is_shown:
            return
        of_all = "" if self._total is None else f"/{self._total}"
        noun = self._unit if (self._total or self._done) == 1 else _plural(self._unit)
        notes = [f"{name} {number:.4g}" for name, number in self._notes.items()]
        line = ", ".join([f"{self._name}: {self._done}{of_all} {noun}", pace, *notes])
        print(line, file=sys.stderr, flush=True)


def each(items: Iterable[T], name: str, unit: str, total: int | None, *, is_shown: bool = True) -> Iterator[T]:
    """The items, one piece of work each, under a `Progress`."""
    with Progress(name, unit, total, is_shown=is_shown) as progress:
        for item in items:
            yield item
            progress.advance()


def duration(seconds: float) -> str:
    """Such as 45 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
