"""Loss curves: tables as CSV, and the same tables drawn as PNG."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Table = dict[str, list[tuple[float, float]]]


def write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows as CSV with a header; columns in the order in which they first appear, floats to 9 digits. A reader
    finds the former file or this one, never a part of it."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    new = path.with_name(f".{path.name}.new")
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[_text(row.get(name)) for name in columns] for row in rows])
    new.replace(path)


def read_table(path: Path, x: str = "step") -> Table:
    """Every column but `x` of a CSV as points (x, value); empty and NaN cells are left out."""
    table: Table = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != x and value and not math.isnan(float(value)):
                    table.setdefault(name, []).append((float(row[x]), float(value)))
    return table


def draw_curves(tables: Mapping[str, Path], path: Path, x: str = "step") -> None:
    """Draw CSV tables (label -> file) over column `x` as one PNG, a panel per column; equal tables give equal bytes."""
    curves = {label: read_table(file, x) for label, file in tables.items()}
    names = list(dict.fromkeys(name for table in curves.values() for name in table))
    figure, panels = _panels(names, x)
    for name, axes in panels.items():
        for label, table in curves.items():
            if name not in table:
                continue
            points = table[name]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", label=label)
            if _spans_decades(value for _, value in points):
                axes.set_yscale("log")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def draw_intervals(table: Path, path: Path, x: str) -> None:
    """Draw a CSV over column `x` as one PNG, a panel per column NAME: bars from NAME_low to NAME_high if there are
    such columns, and NAME_floor as a dashed line; equal tables give equal bytes."""
    columns = read_table(table, x)
    parts = ("_low", "_high", "_floor")
    figure, panels = _panels([name for name in columns if not name.endswith(parts)], x)
    for name, axes in panels.items():
        places, values = zip(*columns[name], strict=True)
        ends = [columns[f"{name}_{side}"] for side in ("low", "high") if f"{name}_{side}" in columns]
        bars = [[abs(end - value) for (_, end), value in zip(side, values, strict=True)] for side in ends] or None
        axes.errorbar(places, values, yerr=bars, marker=".", capsize=3, label="samples")
        if f"{name}_floor" in columns:
            axes.plot(*zip(*columns[f"{name}_floor"], strict=True), linestyle="--", label="real images")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _panels(names: Sequence[str], x: str) -> tuple[Any, dict[str, Any]]:
    """A figure with one panel for each name, up to three in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = min(3, max(1, len(names)))
    num_rows = max(1, math.ceil(len(names) / num_columns))
    figure = Figure(figsize=(4 * num_columns, 3 * num_rows))
    figure.subplots_adjust(left=0.2 / num_columns, right=1 - 0.1 / num_columns, wspace=0.3)
    figure.subplots_adjust(bottom=0.2 / num_rows, top=1 - 0.1 / num_rows, hspace=0.5)
    FigureCanvasAgg(figure)
    return figure, {
        name: figure.add_subplot(num_rows, num_columns, i, title=name, xlabel=x) for i, name in enumerate(names, 1)
    }


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _spans_decades(values: Iterable[float]) -> bool:
    """Whether values are positive and differ so much that a linear axis hides the small ones."""
    known = list(values)
    return min(known) > 0 and max(known) / min(known) > 10
