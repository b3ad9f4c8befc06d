"""Distance of the edge of a drawn object from the outline that it should have.

The outline is fitted to a coverage map (the share of each pixel that the object covers) by least squares over its
centre, radius, contrast and softness. Where the map and the fitted outline still differ, the edge is displaced.
"""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from scipy import ndimage

from ldm.corpora.shapes_vocabulary import outline

_TABLE_RADIUS = 40
_TABLE_SIDE = 100
"""Side of a table in pixels; it holds the farthest point of an outline, 1.08 radii from its centre."""
_TABLE_SUPERSAMPLING = 8
_NUM_STEPS = 3
_MAX_STEP_PX = 1.0
_MAX_BLUR_VARIANCE = 0.5
"""In square pixels: an edge may be as soft as after a Gaussian of 0.7 pixels; a softer edge counts as displaced."""
_CONTRASTS = (0.9, 1.1)
_RESOLUTION = 0.1
"""Deviation, in radii, of the Gaussian that smooths both coverage maps before they are compared."""
_LEAST_RESOLUTION_PX = 0.6


@lru_cache(maxsize=8)
def _table(shape: str) -> tuple[Float[np.ndarray, "t t"], float, tuple[float, float]]:
    """Summed-area table (Crow 1984) of a large drawing of an outline; its area and centroid (x, y) at radius 1."""
    scale = _TABLE_SUPERSAMPLING
    middle = scale * _TABLE_SIDE / 2
    # In Pillow, the integer coordinates of a polygon are the centres of pixels.
    corners = [(middle + x - 0.5, middle + y - 0.5) for x, y in outline(shape, float(scale * _TABLE_RADIUS))]
    canvas = Image.new("L", (scale * _TABLE_SIDE, scale * _TABLE_SIDE))
    ImageDraw.Draw(canvas).polygon(corners, fill=1)
    drawn = np.asarray(canvas, dtype=np.float64).reshape(_TABLE_SIDE, scale, _TABLE_SIDE, scale).mean((1, 3))
    area, x, y = _moments(drawn)
    half = _TABLE_SIDE / 2
    sums = np.pad(drawn.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return sums, area / _TABLE_RADIUS**2, ((x - half) / _TABLE_RADIUS, (y - half) / _TABLE_RADIUS)


def _moments(coverage: Float[np.ndarray, "h w"]) -> tuple[float, float, float]:
    """Area, and centroid as (x, y), in pixels from the upper left corner."""
    height, width = coverage.shape
    area = float(coverage.sum())
    x, y = coverage.sum(0) @ (np.arange(width) + 0.5), coverage.sum(1) @ (np.arange(height) + 0.5)
    return area, float(x) / area, float(y) / area


def _look_up(centre: float, radius: float, blur: float, count: int) -> Float[np.ndarray, "n t"]:
    """Matrix that turns a summed-area table along one axis into sums over `count` pixels, blurred by a variance."""
    # Edges of the pixels in coordinates of the table, interpolated linearly between its entries.
    position = (np.arange(-1, count + 2) - centre) * (_TABLE_RADIUS / radius) + _TABLE_SIDE / 2
    position = position.clip(0, _TABLE_SIDE)
    left = np.minimum(position.astype(int), _TABLE_SIDE - 1)
    rows = np.arange(count + 3)
    edges = np.zeros((count + 3, _TABLE_SIDE + 1))
    edges[rows, left] = left + 1 - position
    edges[rows, left + 1] = position - left
    pixels = edges[1:] - edges[:-1]
    # A kernel of three pixels with variance `blur`.
    return (1 - blur) * pixels[1:-1] + blur / 2 * (pixels[:-2] + pixels[2:])


def _drawn(shape: str, fit: Float[np.ndarray, "5"], height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Coverage map of an outline. fit: x, y, radius, variance of the blur, contrast."""
    x, y, radius, blur, contrast = fit.tolist()
    sums = _look_up(y, radius, blur, height) @ _table(shape)[0] @ _look_up(x, radius, blur, width).T
    return sums * (contrast * (radius / _TABLE_RADIUS) ** 2)


def _fitted(shape: str, coverage: Float[np.ndarray, "h w"]) -> tuple[Float[np.ndarray, "h w"], float]:
    """Coverage map of the outline that fits `coverage` best by least squares, and the radius of the outline in pixels.

    Gauss-Newton, starting from the outline of equal area and centroid. Derivatives are computed from differences of
    neighbouring pixels; the derivative by the variance of the blur follows from the heat equation.
    """
    height, width = coverage.shape
    _, unit_area, (unit_x, unit_y) = _table(shape)
    area, x, y = _moments(coverage)
    radius = math.sqrt(area / unit_area)
    # Parameters of the fit: x, y, radius, variance of the blur, contrast.
    fit = np.array([x - unit_x * radius, y - unit_y * radius, radius, 0.0, 1.0])
    lowest = np.array([-np.inf, -np.inf, radius / 2, 0.0, _CONTRASTS[0]])
    highest = np.array([np.inf, np.inf, radius * 2, _MAX_BLUR_VARIANCE, _CONTRASTS[1]])
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    for _ in range(_NUM_STEPS):
        drawn = _drawn(shape, fit, height, width)
        down, across = np.gradient(drawn)
        outward = (across * (columns - fit[0]) + down * (rows - fit[1])) / fit[2]
        derivatives = [-across, -down, -outward, ndimage.laplace(drawn, mode="nearest") / 2, drawn / fit[4]]
        slopes = np.stack([d.ravel() for d in derivatives])
        step = np.linalg.lstsq(slopes @ slopes.T, slopes @ (coverage - drawn).ravel(), rcond=None)[0]
        fit = (fit + step.clip(-_MAX_STEP_PX, _MAX_STEP_PX)).clip(lowest, highest)
    return _drawn(shape, fit, height, width), float(fit[2])


def gap(shape: str, coverage: Float[np.ndarray, "h w"]) -> float:
    """The largest distance between an object's edge and the best-fitting outline of `shape`, in radii of that outline.

    Args:
        shape: one of `shapes_vocabulary.SHAPES`.
        coverage: share of each pixel that the object covers, in [0, 1]; not all zero.

    Both maps are smoothed by a Gaussian of deviation s = `_RESOLUTION` radii. Where the edge is displaced by d over a
    length of more than s, their difference is d / (s sqrt(2 pi)) at most, which is solved for d.
    """
    fitted, radius = _fitted(shape, coverage)
    deviation = max(_LEAST_RESOLUTION_PX, _RESOLUTION * radius)
    difference = ndimage.gaussian_filter(coverage - fitted, deviation)
    return float(np.abs(difference).max()) * deviation * math.sqrt(2 * math.pi) / radius
