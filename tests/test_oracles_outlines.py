"""The gap between an edge and its outline: none for the outline itself, and as large as it is where an edge moved."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from ldm.corpora import shapes_vocabulary as vocabulary
from ldm.oracles import outlines

SCALE = 16


def _coverage(corners: list[tuple[float, float]], x: float, y: float, side: int) -> np.ndarray:
    """Exact up to 1/16 of a pixel, unlike the corpus's own renders."""
    canvas = Image.new("L", (side * SCALE, side * SCALE))
    moved = [((x + dx) * SCALE - 0.5, (y + dy) * SCALE - 0.5) for dx, dy in corners]
    ImageDraw.Draw(canvas).polygon(moved, fill=1)
    return np.asarray(canvas, dtype=float).reshape(side, SCALE, side, SCALE).mean((1, 3))


@pytest.mark.parametrize("radius", [5.5, 8.3, 13.0, 26.0])
@pytest.mark.parametrize("shape", vocabulary.SHAPES)
def test_an_outline_fits_itself_wherever_it_lies(shape: str, radius: float) -> None:
    side = math.ceil(2.6 * radius)
    coverage = _coverage(vocabulary.outline(shape, radius), side / 2 + 0.3, side / 2 - 0.4, side)
    assert outlines.gap(shape, coverage) * radius < 0.06
    assert outlines.gap(shape, 0.95 * ndimage.gaussian_filter(coverage, 0.6)) * radius < 0.06


@pytest.mark.parametrize("moved", [0.5, 1.0, 1.5])
def test_a_dent_counts_with_its_depth_less_what_the_fit_makes_up_for(moved: float) -> None:
    radius = 20.0
    square = vocabulary.outline("square", radius)
    (left, top), (right, _) = square[:2]
    dent = [(-6.0, top), (-6.0, top + moved), (6.0, top + moved), (6.0, top)]
    coverage = _coverage([(left, top), *dent, (right, top), *square[2:]], 28, 28, 56)
    assert outlines.gap("square", coverage) * radius == pytest.approx(0.8 * moved, rel=0.15)


def test_no_outline_is_another() -> None:
    radius = 13.0
    for drawn in vocabulary.SHAPES:
        coverage = _coverage(vocabulary.outline(drawn, radius), 20, 20, 40)
        assert all(outlines.gap(other, coverage) > 0.08 for other in vocabulary.SHAPES if other != drawn)
