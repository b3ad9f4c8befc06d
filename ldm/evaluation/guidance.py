"""The guidance sweep as lines over the scale, in words: which of them tell one scale from another?"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.core.errors import IntegrityError
from ldm.evaluation import spaces
from ldm.oracles.oracle import Oracle
from ldm.training.plots import Panel, Series, write_rows

TABLE = "guidance_sweep.csv"
_X = "guidance scale"
_SCALE, _ENDS, _FLOOR = "guidance_scale", ("_low", "_high"), "_floor"
_COLUMNS = ("measure", "name", "guidance_scale", "value", "low", "high", "real_images", "is_shown")
_ACCURACY = "_accuracy"


@dataclass(frozen=True)
class Point:
    """A value at a scale, with its 95 % interval, if it has one."""

    scale: float
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Line:
    """One measure at every scale of the sweep."""

    measure: str
    """Name of the metric, such as `scene_accuracy`."""
    name: str
    """The same in words."""
    points: Sequence[Point]
    floor: float | None
    """The value of the real images of the same prompts, if the measure has one."""

    @property
    def tells(self) -> bool:
        """Whether it tells two scales apart: some two of its intervals do not overlap."""
        ends = [point.interval for point in self.points]
        known = [end for end in ends if end is not None]
        return len(known) == len(ends) > 1 and max(low for low, _ in known) > min(high for _, high in known)


def lines(rows: Sequence[Mapping[str, float]], oracle: Oracle | None) -> list[Line]:
    """Lines of `Report.sweep`, in the order of its columns. oracle: what names its accuracies, if there are any."""
    found: list[Line] = []
    for measure in dict.fromkeys(name for row in rows for name in row):
        if measure == _SCALE or measure.endswith((*_ENDS, _FLOOR)):
            continue
        points = [Point(row[_SCALE], row[measure], _interval(row, measure)) for row in rows if measure in row]
        found.append(Line(measure, _in_words(measure, oracle), points, rows[0].get(measure + _FLOOR)))
    return found


def shown(found: Sequence[Line]) -> list[Line]:
    """The lines that are worth a picture: the first, and all that tell scales apart."""
    return [line for i, line in enumerate(found) if i == 0 or line.tells]


def note(found: Sequence[Line]) -> str:
    """A sentence about the measures that tell no scale from another; empty if there are none."""
    flat = [line.name for line in found if not line.tells and all(point.interval for point in line.points)]
    return f"Intervals (95 %) of all scales overlap: {', '.join(flat)}" if flat else ""


def panels(found: Sequence[Line]) -> list[Panel]:
    """A panel for each line that is worth a picture."""
    return [_panel(line) for line in shown(found)]


def write(path: Path, found: Sequence[Line]) -> None:
    """Write the lines as CSV, a row per point; `is_shown` is 1 for those of `shown`."""
    chosen = shown(found)
    rows: list[list[object]] = []
    for line in found:
        for point in line.points:
            numbers = [point.scale, point.value, *(point.interval or (None, None)), line.floor]
            cells = ["" if number is None else f"{number:.9g}" for number in numbers]
            rows.append([line.measure, line.name, *cells, int(line in chosen)])
    write_rows(path, [_COLUMNS, *rows])


def read(path: Path) -> list[Line]:
    """The lines that `write` wrote. IntegrityError: the file is missing, or not one of them."""
    found: dict[tuple[str, str], list[tuple[Point, float | None]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                low, high, floor = (float(row[name]) if row[name] else None for name in ("low", "high", "real_images"))
                interval = None if low is None or high is None else (low, high)
                point = Point(float(row["guidance_scale"]), float(row["value"]), interval)
                found.setdefault((row["measure"], row["name"]), []).append((point, floor))
    except (OSError, KeyError, ValueError, TypeError) as error:
        expected, fix = "the table that stage evaluate writes", "run `dvc repro evaluate`"
        raise IntegrityError(str(path), f"{type(error).__name__}: {error}", expected, fix) from error
    return [Line(*names, [point for point, _ in each], each[0][1]) for names, each in found.items()]


def _interval(row: Mapping[str, float], measure: str) -> tuple[float, float] | None:
    low, high = (row.get(measure + end) for end in _ENDS)
    return None if low is None or high is None else (low, high)


def _panel(line: Line) -> Panel:
    points = [(point.scale, point.value) for point in line.points]
    intervals = [point.interval for point in line.points if point.interval is not None]
    series = [Series("samples", points, intervals)]
    if line.floor is not None:
        series.append(Series("real images", [(x, line.floor) for x, _ in points], is_reference=True))
    return Panel(line.name, _X, series, is_share=line.measure.endswith(_ACCURACY))


def _in_words(measure: str, oracle: Oracle | None) -> str:
    if oracle is not None and measure.removesuffix(_ACCURACY) in oracle.attributes:
        return f"{oracle.label(measure.removesuffix(_ACCURACY))} right"
    kind, _, space = measure.partition("_")
    return spaces.label(kind, space) if kind in spaces.DISTANCES else spaces.CLIP_SCORE
