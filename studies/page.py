"""Tables and pictures of docs/studies.md from the JSONs of the studies: `python -m studies.page`.

The text of the page is written by hand. A study that has no JSON yet leaves its block as it is.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from docs.blocks import rewritten
from studies import quality
from studies.rows import Row

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/studies.md"
RESULTS = ROOT / "docs/studies"
PERCENT = {"scene", "scene_strict", "own_scene", "scene_difference", "recall", "precision", "clipped"}
"""Shares, shown in percent."""
COLUMNS: dict[str, dict[str, str]] = {
    "guidance": {
        "name": "guidance",
        "scene": "whole scene, %",
        "scene_strict": "strict outlines, %",
        "pair_distance": "distance of two samples of a prompt",
        "recall": "recall, %",
        "precision": "precision, %",
        "clipped": "values at 0 or 255, %",
        "chroma": "chroma",
    },
    "inpainting": {
        "holes": "holes",
        "scene": "whole scene, %",
        "scene_strict": "strict outlines, %",
        "seam": "step across the border",
    },
    "img2img": {
        "strength": "strength",
        "pixels": "distance in pixels",
        "pixels_more": "more than before",
        "features": "distance in features",
        "features_more": "more than before",
        "own_scene": "scene of the input, %",
        "scene": "scene of the prompt, %",
    },
    "denoising": {
        "level": "noise",
        "method": "method",
        "parameters": "parameters",
        "psnr": "PSNR, dB",
        "model_better_by": "model is better by, dB",
    },
    "anomaly": {
        "model": "model",
        "reconstruction_error": "reconstruction error",
        "bits_per_dimension": "bits per dimension",
        "autoencoder_error": "autoencoder alone",
    },
    "checkpoints": {
        "step": "step",
        "kid": "kernel distance",
        "kid_less": "less than before",
        "scene": "whole scene, %",
    },
    "inversion": {"num_steps": "steps", "error": "error of latents"},
}
"""Columns of the table of a study: field of its rows -> heading."""


def cell(field: str, value: Any) -> str:
    """A value, or an estimate with its interval, as the tables show it."""
    if isinstance(value, list):
        numbers = [100 * number for number in value] if field in PERCENT else value
        texts = [f"{number:.1f}" if field in PERCENT else f"{number:.3g}" for number in numbers]
        return f"{texts[0]} ({texts[1]} to {texts[2]})"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def table(columns: Mapping[str, str], rows: Iterable[Row]) -> str:
    """Rows as Markdown."""
    lines = [[*columns.values()], ["---"] * len(columns)]
    lines += [[cell(field, row[field]) for field in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def quality_tables(rows: Sequence[Row], budgets: Sequence[int]) -> str:
    """The least evaluations of every sampler, and its accuracy at each number of them."""
    reference = rows[0]
    steps, scene = reference["num_steps"], cell("scene", reference["scene"])
    text = f"Reference: `{reference['sampler']}`, {steps} steps: whole scene {scene} %.\n\n"
    titles = {"sampler": "sampler", "scene": "evaluations until accuracy is equal", "kid": "until distance is equal"}
    last = max(budgets)
    least = [
        {"sampler": f"`{name}`", **{key: f"more than {last}" if n is None else n for key, n in found.items()}}
        for name, found in quality.least(rows).items()
    ]
    text += table(titles, least) + "\n"
    columns = {"sampler": "whole scene, %, with at most", **{str(budget): str(budget) for budget in budgets}}
    return text + table(columns, _by_budget(rows[1:], budgets))


def _by_budget(rows: Iterable[Row], budgets: Sequence[int]) -> list[Row]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = found.setdefault(row["sampler"], {"sampler": f"`{row['sampler']}`", **{str(b): "" for b in budgets}})
        line[str(min(b for b in budgets if b >= row["evaluations"]))] = f"{100 * row['scene'][0]:.1f}"
    return list(found.values())


def origin(rows: Sequence[Row]) -> str:
    """How many images and which devices the rows are from."""
    counts = sorted({row["count"] for row in rows})
    devices = sorted({row["device"] for row in rows})
    return f"{' or '.join(map(str, counts))} images per row; computed on {' and '.join(devices)}.\n"


def block(name: str, result: Mapping[str, Any]) -> str:
    """The part of the page that a study's JSON makes."""
    rows: list[Row] = result["rows"]
    is_quality = name == "quality"
    text = quality_tables(rows, result["params"]["evaluations"]) if is_quality else table(COLUMNS[name], rows)
    return f"{text}\n{origin(rows)}\n![{name}](studies/{name}.png)\n"


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5 * count, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, count, i) for i in range(1, count + 1)]


def _line(axes: Axes, rows: Sequence[Row], x: str, field: str, label: str | None = None) -> None:
    """Values over x, with bars for intervals."""
    values = [row[field] for row in rows]
    # Where a share is 0 or 1, rounding may put an end on the wrong side of it.
    bars = [[max(v[0] - v[1], 0.0) for v in values], [max(v[2] - v[0], 0.0) for v in values]]
    axes.errorbar([row[x] for row in rows], [v[0] for v in values], yerr=bars, marker=".", capsize=2, label=label)
    axes.set(xlabel=x.replace("_", " "), title=field.replace("_", " "))
    axes.grid(alpha=0.3)


def draw_quality(rows: Sequence[Row]) -> Figure:
    """Accuracy and distance of every sampler over evaluations; the grey band is the reference."""
    figure, panels = _panels(2)
    for axes, field in zip(panels, ("scene", "kid"), strict=True):
        axes.set_prop_cycle(color=colormaps["tab20"](range(20)))  # the cycle by default repeats after ten
        for name in dict.fromkeys(row["sampler"] for row in rows[1:]):
            own = [row for row in rows[1:] if row["sampler"] == name]
            _line(axes, own, "evaluations", field, name)
        axes.axhspan(*rows[0][field][1:], color="grey", alpha=0.3)
        axes.set_xscale("log")
    panels[1].set_yscale("symlog", linthresh=max(abs(rows[0]["kid"][0]), 1.0))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return figure


def draw_fields(fields: Sequence[str], x: str) -> Callable[[Sequence[Row]], Figure]:
    """A picture with a panel for each field."""

    def draw(rows: Sequence[Row]) -> Figure:
        figure, panels = _panels(len(fields))
        for axes, field in zip(panels, fields, strict=True):
            _line(axes, [row for row in rows if row["name"].count(",") == 0], x, field)
        return figure

    return draw


def draw_denoising(rows: Sequence[Row]) -> Figure:
    """PSNR of every method over the noise."""
    figure, (axes,) = _panels(1)
    for method in dict.fromkeys(row["method"] for row in rows):
        _line(axes, [row for row in rows if row["method"] == method], "level", "psnr", method)
    axes.legend(fontsize="small")
    return figure


PICTURES: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "quality": draw_quality,
    "guidance": draw_fields(("scene", "pair_distance", "recall", "clipped", "chroma"), "scale"),
    "inpainting": draw_fields(("scene", "seam"), "holes"),
    "img2img": draw_fields(("pixels", "features", "own_scene", "scene"), "strength"),
    "denoising": draw_denoising,
    "anomaly": draw_fields(("reconstruction_error", "bits_per_dimension", "autoencoder_error"), "model"),
    "checkpoints": draw_fields(("kid", "scene"), "step"),
    "inversion": draw_fields(("error",), "num_steps"),
}
"""Study -> how its rows are drawn; the studies of the page, in its order."""


def results() -> dict[str, Any]:
    """The JSONs that are there, by study."""
    files = {name: RESULTS / f"{name}.json" for name in PICTURES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}


def main() -> None:
    """Rewrite the page and the pictures."""
    page = PAGE.read_text(encoding="utf-8")
    for name, result in results().items():
        page = rewritten(page, name, block(name, result))
        PICTURES[name](result["rows"]).savefig(RESULTS / f"{name}.png", dpi=80, metadata={"Software": None})
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
