"""Tables as CSV, and pictures of them: panels of curves, as PNG or as SVG. Equal tables give equal bytes."""

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.core import images
from ldm.core.errors import IntegrityError

Points = list[tuple[float, float]]
Table = dict[str, Points]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
"""Told apart with every kind of colour vision (Okabe and Ito 2008)."""
_WORDS = {
    "grad_norm": "gradient norm",
    "kl": "KL divergence",
    "l1": "mean absolute error",
    "logit_scale": "logit scale",
    "mse": "mean squared error",
    "num_skipped": "skipped updates",
    "psnr_db": "PSNR in dB",
    "cosine_matched": "cosine of image and own caption",
    "cosine_margin": "cosine, own minus other caption",
    "retrieval_images": "own image found",
    "retrieval_captions": "own caption found",
    "bits_per_dimension": "sum",
    "mse_noisiest": "noisiest 5 %",
}
"""Names of columns in words, where the name alone does not say it."""
_GROUPS = {
    r"mse_(?:bucket_)?(\d+|noisiest)": "mean squared error by noise, from little (1) on",
    r"bits_(\w+)": "bits per dimension, and its parts",
    r"retrieval_(images|captions)": "retrieval: share that finds its own",
}
"""Columns that are drawn in one panel: pattern -> title. Its group is the label, unless `_WORDS` has one."""
_MANY = 200
"""From so many points on, a curve is drawn as a running mean before the points themselves."""
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "ldm",
}
_INK: Any = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), "#010203")
"""A colour that nothing else has, in whose place an SVG has that of the text around it."""


@dataclass(frozen=True)
class Series:
    """A curve, with an interval at each of its points or with none; a reference is a dashed line behind it."""

    label: str
    points: Points
    intervals: Sequence[tuple[float, float]] = ()
    is_reference: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes with a title, and curves over one quantity."""

    title: str
    x_label: str
    series: Sequence[Series]
    is_share: bool = False
    """Whether values are shares, which are drawn in per cent."""


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, the header first; equal rows are equal bytes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows as CSV with a header; columns in the order in which they first appear, floats to 9 digits. A reader
    finds the former file or this one, never a part of it."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    new = path.with_name(f".{path.name}.new")
    write_rows(new, [columns, *([_text(row.get(name)) for name in columns] for row in rows)])
    new.replace(path)


def write_picture(path: Path, picture: images.Image.Image) -> None:
    """Write a PNG. A reader finds the former file or this one, never a part of it."""
    new = path.with_name(f".{path.name}.new")
    picture.save(new, "PNG")
    new.replace(path)


def read_table(path: Path, x: str = "step") -> Table:
    """Every column but `x` of a CSV as points (x, value); empty and NaN cells are left out. IntegrityError: a cell is
    no number, or there is no column `x`."""
    table: Table = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != x and value and not math.isnan(float(value)):
                        table.setdefault(name, []).append((float(row[x]), float(value)))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        found, expected = f"{type(error).__name__}: {error}", "the table that its stage wrote"
        raise IntegrityError(str(path), found, expected, "run `dvc checkout`, or `dvc repro`") from None
    return table


def curves(tables: Mapping[str, Path]) -> tuple[list[Panel], str]:
    """Panels of CSV tables (label -> file) over their steps, and a line about what has none: columns that never change,
    and those that repeat another."""
    found = {label: read_table(file) for label, file in tables.items()}
    names = list(dict.fromkeys(name for table in found.values() for name in table))
    constant = [
        name for name in names if len({value for table in found.values() for _, value in table.get(name, [])}) < 2
    ]
    told = [f"{_words(name)} {_first(found, name):g}" for name in constant if _num_points(found, name) > 1]
    drawn: dict[str, list[Series]] = {}
    seen: list[list[Points]] = []
    for name in names:
        columns = [table.get(name, []) for table in found.values()]
        if columns in seen or (name in constant and _num_points(found, name) > 1):
            continue
        seen.append(columns)
        title, label = _place(name)
        for kind, points in zip(found, columns, strict=True):
            if points:
                drawn.setdefault(title, []).append(Series(label or kind, points))
    panels = [Panel(title, "step", series) for title, series in drawn.items()]
    return panels, f"Always the same: {', '.join(told)}" if told else ""


def draw_curves(tables: Mapping[str, Path], path: Path) -> None:
    """Draw CSV tables (label -> file) over their steps as one PNG, a panel per quantity."""
    draw(*curves(tables), path)


def draw(panels: Sequence[Panel], note: str, path: Path) -> None:
    """Draw panels as one PNG, up to three in a row, above a note."""
    import matplotlib

    num_columns = min(3, max(1, len(panels)))
    num_rows = max(1, math.ceil(len(panels) / num_columns))
    with matplotlib.rc_context(_STYLE):
        figure = _figure(4 * num_columns, 2.8 * num_rows + (0.4 if note else 0.0))
        for i, panel in enumerate(panels, 1):
            _draw(figure.add_subplot(num_rows, num_columns, i), panel)
        if note:
            figure.supxlabel(note, fontsize=8, x=0.01, ha="left", wrap=True)
        figure.savefig(path, dpi=100, metadata={"Software": None})


def svg(panel: Panel, name: str) -> str:
    """One panel as the element `svg` of a page: as wide as it may be, in the colour of the text around it, with
    curves in the colours `--curve-0` and so on, if it has them. name: what the ids in it begin with, unique in the
    page."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, **_INK}):
        figure = _figure(4.2, 2.9)
        _draw(figure.add_subplot(), panel)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue().replace(_INK["text.color"], "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for i, colour in enumerate(_COLOURS):
        text = text.replace(colour.lower(), f"var(--curve-{i}, {colour})")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)
    label = f'<svg role="img" aria-label="{html.escape(panel.title)}" '
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", text.replace("<svg ", label, 1), count=2)


def _figure(width_in: float, height_in: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw(axes: Any, panel: Panel) -> None:
    axes.set(title=panel.title, xlabel=panel.x_label)
    for series, colour in zip(panel.series, _COLOURS * len(panel.series), strict=False):
        _draw_series(axes, series, colour)
    values = [value for series in panel.series for _, value in series.points]
    if panel.is_share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    elif values and _spans_decades(values):
        axes.set_yscale("log")
    if len(panel.series) > 1:
        axes.legend()


def _draw_series(axes: Any, series: Series, colour: str) -> None:
    x, y = zip(*series.points, strict=True)
    if series.is_reference:
        axes.plot(x, y, color="#888888", linestyle="--", label=series.label, zorder=1)
    elif series.intervals:
        bars = [[abs(end[side] - value) for end, value in zip(series.intervals, y, strict=True)] for side in (0, 1)]
        axes.errorbar(x, y, yerr=bars, color=colour, marker="o", markersize=4, capsize=3, label=series.label)
    elif len(y) >= _MANY:
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(x, _running_mean(y, len(y) // 40), color=colour, label=series.label)
    else:
        axes.plot(x, y, color=colour, marker="." if len(y) < 30 else "", label=series.label)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Each value with up to `width` values before and after it, fewer at the ends."""
    ends = [(max(0, i - width), min(len(values), i + width + 1)) for i in range(len(values))]
    return [sum(values[start:stop]) / (stop - start) for start, stop in ends]


def _place(name: str) -> tuple[str, str | None]:
    """Title of the panel of a column, and the label of its curve if that is not the one of its table."""
    for pattern, title in _GROUPS.items():
        if match := re.fullmatch(pattern, name):
            return title, _WORDS.get(name, match[1])
    return _words(name), None


def _words(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))


def _num_points(tables: Mapping[str, Table], name: str) -> int:
    return sum(len(table.get(name, [])) for table in tables.values())


def _first(tables: Mapping[str, Table], name: str) -> float:
    return next(points[0][1] for table in tables.values() if (points := table.get(name)))


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _spans_decades(values: Iterable[float]) -> bool:
    """Whether values are positive and differ so much that a linear axis hides the small ones."""
    known = list(values)
    return min(known) > 0 and max(known) / min(known) > 10
