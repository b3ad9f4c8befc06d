"""How figures look: one width, one set of colours, one way to become a PNG. The only door to matplotlib here."""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

BLUE, ORANGE, GREEN, RED, SKY, PINK, BLACK = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#222222"),
)
COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK)
"""Told apart with every kind of colour vision (Okabe and Ito 2008)."""
LINES: Any = [{"color": colour, "linestyle": ("-", "--", ":")[i // 4]} for i, colour in enumerate((COLOURS * 2)[:12])]
"""Looks of curves; later ones are dashed, then dotted, so that what they cover shows through."""
GREY = "#888888"
DENSITY: Any = LinearSegmentedColormap.from_list("density", ["#ffffff", "#dfe5ec", "#9fb0c4", "#5d7590"])
"""White where a density is 0."""
ALONG = "viridis"
"""Colours of a number along a path."""
_WIDTH_IN, _DOTS_PER_IN = 8.3, 150
_NUM_COLOURS = 256
_GAP = 0.35
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}


def applied() -> AbstractContextManager[None]:
    """Every figure is drawn within this."""
    return matplotlib.rc_context(_STYLE)


def panels(num_rows: int, num_columns: int, height_in: float, **options: Any) -> tuple[Any, Any]:
    """A figure as wide as a README, and its axes as an array [rows, columns]. options: as of `Figure.subplots`."""
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def png(figure: Any) -> bytes:
    """The figure as a PNG of few colours, a third as large as one of all; equal figures give equal bytes."""
    figure.set_dpi(_DOTS_PER_IN)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    image = Image.fromarray(np.ascontiguousarray(pixels)).quantize(
        _NUM_COLOURS, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE
    )
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def bare(axes: Any, limit: float | None = None) -> None:
    """Take ticks and grid from a panel; limit: it shows -limit to limit both ways."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color("#cccccc")
    if limit is not None:
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")


def shade(panel: Any, x: Any, y: Any, density: Any) -> None:
    """Shade a density [y, x] whose largest value is 1; the square root shows its tails."""
    panel.contourf(x, y, density**0.5, levels=np.linspace(0, 1, 13), cmap=DENSITY, antialiased=False)


def arrows(panel: Any, places: Any, directions: Any) -> None:
    """Arrows [n, 2] from places [n, 2], in the units of the axes."""
    panel.quiver(*places.T, *directions.T, angles="xy", scale_units="xy", scale=1, color=RED, width=0.008)


def thumbnails(panel: Any, places: Any, images: UInt8[np.ndarray, "n h w 3"], size: float = 0.12) -> None:
    """Show images at their places [n, 2], in order, and leave out those that would cover another. size: in units of the
    axes."""
    shown: list[Any] = []
    for (x, y), image in zip(places, images, strict=True):
        if all(max(abs(x - other_x), abs(y - other_y)) > 1.05 * size for other_x, other_y in shown):
            shown.append((x, y))
            extent = (x - size / 2, x + size / 2, y - size / 2, y + size / 2)
            panel.imshow(image, extent=extent, interpolation="bilinear", zorder=2)


def strips(
    rows: Mapping[str, UInt8[np.ndarray, "n h w 3"]], columns: Sequence[str], title: str, num_groups: int = 1
) -> Any:
    """Rows of images, each named at its left. columns: what stands above those of the first row; title: plain text,
    such as a caption; num_groups: gaps divide the columns into so many groups of equal size, each with one name at its
    left instead."""
    shape = max(images.shape[1] / images.shape[2] for images in rows.values())
    size = len(next(iter(rows.values()))) // num_groups
    widths = [*([1.0] * size), *([_GAP, *([1.0] * size)] * (num_groups - 1))]
    side_in = (_WIDTH_IN - 0.8) / sum(widths)
    num_lines = max(column.count("\n") + 1 for column in columns) + (1.7 if title else 0)
    height_in = len(rows) * side_in * shape + 0.15 * num_lines + 0.05
    figure, grid = panels(len(rows), len(widths), height_in, gridspec_kw={"width_ratios": widths})
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0.02, hspace=0.02)
    if title:
        figure.suptitle(title, fontsize=9, style="italic", parse_math=False)
    shown = [i for i, width in enumerate(widths) if width == 1]
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        for panel in axes:
            panel.set_axis_off()
        for panel, image in zip(axes[shown], images, strict=True):
            panel.set_axis_on()
            panel.imshow(image, interpolation="nearest")
            bare(panel)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
    titled = grid[0][shown[:: size if num_groups > 1 else 1]]
    for panel, column in zip(titled, columns, strict=True):
        panel.set_title(column, fontsize=8, pad=3, loc="left" if num_groups > 1 else "center")
    return figure
