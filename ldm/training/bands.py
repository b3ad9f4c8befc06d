"""The band in which the loss of a known run stayed: a training that leaves it is not the run that it should repeat."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ldm.core.errors import ConfigError
from ldm.training.plots import read_table, write_rows

_PARTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Ends of the windows of a training, as shares of its steps: the loss falls fast at first."""
_MARGIN = 0.15
"""How far a band reaches beyond the losses of its window, as a share of them. The loss of another seed is within it."""


class Window(NamedTuple):
    """Least and greatest loss of a stage in the steps after the window before, up to `up_to_step`."""

    stage: str
    up_to_step: int
    least: float
    greatest: float


def of_run(stage: str, curve: Path) -> list[Window]:
    """The band of a finished training; empty if nothing was trained. curve: its `curves.csv`. IntegrityError: a cell of
    it is no number."""
    windows: list[Window] = []
    points = read_table(curve).get("loss", [])
    num_steps, start = points[-1][0] if points else 0, 0
    for part in _PARTS:
        end = round(part * num_steps)
        losses = [loss for step, loss in points if start < step <= end]
        if losses:
            least, greatest = min(losses), max(losses)
            windows.append(Window(stage, end, least - _MARGIN * abs(least), greatest + _MARGIN * abs(greatest)))
            start = end
    return windows


def write(path: Path, windows: Sequence[Window]) -> None:
    """Write bands as CSV, losses to four digits. What was there before stays if that fails."""
    rows = [(window.stage, window.up_to_step, f"{window.least:.4g}", f"{window.greatest:.4g}") for window in windows]
    new = path.with_name(f".{path.name}.new")
    try:
        write_rows(new, [Window._fields, *rows])
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def read(path: Path, stage: str) -> list[Window]:
    """The band of one stage; empty if the file has none. ConfigError: it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                Window(row["stage"], int(row["up_to_step"]), float(row["least"]), float(row["greatest"]))
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"not read ({error})"
        raise ConfigError(
            f"{stage}: training.loss_band: {path}",
            found,
            f"a CSV with columns {', '.join(Window._fields)}",
            "name one of recipes/bands, or set it to null",
        ) from None
    return [window for window in rows if window.stage == stage]


def window_at(windows: Sequence[Window], step: int) -> Window | None:
    """The window of a step; None after the last one."""
    return next((window for window in windows if step <= window.up_to_step), None)


def is_outside(windows: Sequence[Window], row: Mapping[str, float]) -> bool:
    """Whether the loss of a row is outside the band; NaN is."""
    window = window_at(windows, int(row["step"]))
    return window is not None and not window.least <= row["loss"] <= window.greatest
