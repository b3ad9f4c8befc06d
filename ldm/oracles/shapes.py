"""The oracle of the corpus `shapes`: reads a scene from pixels by fixed rules, without the caption, and compares it
with what the caption claims.

Nothing is learned. The rules use the palette, outlines and sizes that the corpus draws with: background from the
border, objects as connected regions that differ from it, colour by the nearest palette entry, shape by overlap with
each outline, size by extent, place by the centre of the extent. The overlap tolerates rounded corners and bent sides;
whether edges are exactly on the outline is checked separately (`ldm.oracles.outlines`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations
from typing import cast

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from ldm.corpora.shapes_vocabulary import ANCHORS, AXES, BACKGROUNDS, COLOURS, RADII, RELATIONS, SHAPES, outline
from ldm.oracles import outlines
from ldm.oracles.oracle import Claim, Oracle, Told

ATTRIBUTES = ("count", "colour", "shape", "size", "place", "relation", "background")
"""Attributes that a claim may state."""
STRICT = ("outline", "scene_strict")
"""Results of `compare` beyond these and "scene": every edge is on its outline; that and the whole scene."""

_OTHER = "other"
"""The value of what matches nothing that the corpus draws."""
_COLOUR_NAMES = list(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
_BACKGROUND_NAMES = list(BACKGROUNDS)
_BACKGROUND_PALETTE = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
_MIN_CONTRAST = 60.0
"""RGB distance from the background above which a pixel belongs to an object."""
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_MIN_LUMINANCE_CONTRAST = 20.0
_MIN_AREA = 0.004
"""Area of the smallest region that is read as an object, as a fraction of the image; drawn objects cover >= 0.011."""
_MAX_COLOUR_DISTANCE = 75.0
_MIN_OVERLAP = 0.75
_MAX_GAP = 0.04
"""Largest distance of an edge from its outline, in radii."""
_MARGIN_PX = 4
"""Pixels around an object that are compared with its outline."""
_WINDOW = 1.2
_WINDOW_SAMPLES = 32
_BLURS = (0.03, 0.07, 0.12)


@dataclass(frozen=True)
class Reading:
    """What is read from one region of an image; None where it matches nothing that the corpus draws."""

    colour: str | None
    shape: str | None
    size: str
    x: float
    y: float
    is_outlined: bool
    """Whether its edge is on the outline of `shape` everywhere."""


@dataclass(frozen=True)
class SceneReading:
    """All that is read from an image: its objects and its background."""

    objects: tuple[Reading, ...]
    background: str | None


def _nearest(rgb: Float[np.ndarray, "3"], palette: np.ndarray, names: list[str], limit: float) -> str | None:
    distances = np.linalg.norm(palette - rgb, axis=1)
    best = int(distances.argmin())
    return names[best] if distances[best] <= limit else None


def _normalise(coverage: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "m m"]:
    """Resample a coverage map so that its centroid is in the middle and its area is a fixed part of the window.

    Unlike the bounding box, area and centroid hardly change under blur and compression.
    """
    area = max(float(coverage.sum()), 1.0)
    rows, columns = np.indices(coverage.shape)
    cy, cx = float((rows * coverage).sum() / area), float((columns * coverage).sum() / area)
    offsets = np.linspace(-_WINDOW, _WINDOW, _WINDOW_SAMPLES) * area**0.5
    grid = np.meshgrid(cy + offsets, cx + offsets, indexing="ij")
    return ndimage.map_coordinates(coverage, grid, order=1, mode="constant")


@lru_cache(maxsize=1)
def _templates() -> dict[str, list[Float[np.ndarray, "m m"]]]:
    """Every outline, normalised, with several amounts of blur (in units of the square root of its area)."""
    templates: dict[str, list[Float[np.ndarray, "m m"]]] = {}
    for shape in SHAPES:
        canvas = Image.new("L", (400, 400))
        ImageDraw.Draw(canvas).polygon([(200 + x, 200 + y) for x, y in outline(shape, 110.0)], fill=255)
        coverage = np.asarray(canvas, dtype=np.float32) / 255
        side = float(coverage.sum()) ** 0.5
        templates[shape] = [_normalise(ndimage.gaussian_filter(coverage, blur * side)) for blur in _BLURS]
    return templates


def _shape(coverages: list[Float[np.ndarray, "h w"]]) -> str | None:
    """The shape whose outline overlaps most (sum of minima over sum of maxima) with a coverage map in [0, 1]."""
    seen = [_normalise(coverage) for coverage in coverages]
    overlap = {
        name: max(float(np.minimum(s, t).sum() / np.maximum(s, t).sum()) for t in blurred for s in seen)
        for name, blurred in _templates().items()
    }
    best = max(overlap, key=overlap.__getitem__)
    return best if overlap[best] >= _MIN_OVERLAP else None


def _is_outlined(shape: str, coverages: list[Float[np.ndarray, "h w"]]) -> bool:
    """Whether the edge in one of the coverage maps is on the outline of `shape`."""
    rows, columns = np.nonzero(coverages[0] > 0)
    top, left = max(rows.min() - _MARGIN_PX, 0), max(columns.min() - _MARGIN_PX, 0)
    window = (slice(top, rows.max() + 1 + _MARGIN_PX), slice(left, columns.max() + 1 + _MARGIN_PX))
    return any(outlines.gap(shape, coverage[window]) <= _MAX_GAP for coverage in coverages)


def _coverage(
    pixels: Float[np.ndarray, "h w 3"], near: Bool[np.ndarray, "h w"], background: np.ndarray, rgb: np.ndarray
) -> list[Float[np.ndarray, "h w"]]:
    """How much of each pixel near a region the object covers, in [0, 1]: one map by colour, and one by luminance if it
    differs enough between object and background, because JPEG halves the resolution of colour but not of luminance."""
    contrast = rgb - background
    directions = [contrast]
    if abs(float(contrast @ _LUMINANCE)) > _MIN_LUMINANCE_CONTRAST:
        directions.append(_LUMINANCE)
    maps = [(pixels - background) @ direction / float(contrast @ direction) for direction in directions]
    return [np.where(near, coverage, 0.0).clip(0.0, 1.0) for coverage in maps]


def _read_region(
    pixels: Float[np.ndarray, "h w 3"], region: Bool[np.ndarray, "h w"], background: Float[np.ndarray, "3"], count: int
) -> Reading:
    # Colour from the interior, where no edge pixels mix with the background.
    core: Bool[np.ndarray, "h w"] = np.asarray(ndimage.binary_erosion(region))
    rgb = np.median(pixels[core if core.sum() >= 6 else region], axis=0)
    coverages = _coverage(pixels, ndimage.binary_dilation(region, iterations=2), background, rgb)
    rows, columns = np.nonzero(coverages[-1] > 0.5)
    side = pixels.shape[0]
    shape = _shape(coverages)
    if len(rows) == 0:
        rows, columns = np.nonzero(region)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    # Objects in scenes of more than two are drawn smaller; this undoes it.
    extent = max(bottom - top, right - left) / side / min(1.0, 2 / max(count, 1))
    return Reading(
        colour=_nearest(rgb, _PALETTE, _COLOUR_NAMES, _MAX_COLOUR_DISTANCE),
        shape=shape,
        size="large" if extent > RADII["small"] + RADII["large"] else "small",
        x=float((left + right) / 2 / side),
        y=float((top + bottom) / 2 / side),
        is_outlined=shape is not None and _is_outlined(shape, coverages),
    )


def read(image: UInt8[np.ndarray, "h w 3"]) -> SceneReading:
    """Read the scene of a square RGB image."""
    pixels = image.astype(np.float32)
    # The background is the median colour of the border; objects are connected regions that differ from it.
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0)
    differs = np.linalg.norm(pixels - background, axis=2) > _MIN_CONTRAST
    labels, num_regions = cast("tuple[np.ndarray, int]", ndimage.label(differs, structure=np.ones((3, 3))))
    regions = [labels == i for i in range(1, num_regions + 1)]
    regions = [r for r in regions if r.mean() >= _MIN_AREA]
    readings = [_read_region(pixels, region, background, len(regions)) for region in regions]
    return SceneReading(tuple(readings), _nearest(background, _BACKGROUND_PALETTE, _BACKGROUND_NAMES, 60.0))


def _in_order(first: Reading, second: Reading, axis: str) -> bool:
    """Whether `first` is above (or left of) `second`, and the two are arranged along this axis."""
    dx, dy = second.x - first.x, second.y - first.y
    return dy > abs(dx) if axis == "vertical" else dx > abs(dy)


def _related(objects: list[Reading], relation: str) -> bool:
    axis = RELATIONS[relation]
    forward = relation in ("above", "left of")
    chain = objects if forward else objects[::-1]
    return all(_in_order(a, b, axis) for a, b in pairwise(chain))


def _placed(objects: list[Reading], places: list[str]) -> bool:
    if len(objects) == 1:
        (only,) = objects
        nearest = min(ANCHORS, key=lambda name: (only.x - ANCHORS[name][0]) ** 2 + (only.y - ANCHORS[name][1]) ** 2)
        return nearest == places[0]
    axis = "vertical" if {"top", "bottom"} & set(places) else "horizontal"
    rank = {AXES[axis][0]: 0, "centre": 1, AXES[axis][1]: 2}
    chain = [o for _, o in sorted(zip(places, objects, strict=True), key=lambda pair: rank[pair[0]])]
    return all(_in_order(a, b, axis) for a, b in pairwise(chain))


def _checks(claimed: list[dict[str, str]], objects: list[Reading], relation: str | None) -> dict[str, bool]:
    """Compare claimed objects with equally many readings, in the given order."""
    checks: dict[str, bool] = {}
    for attribute in ("colour", "shape", "size"):
        stated = [
            (c[attribute], getattr(o, attribute)) for c, o in zip(claimed, objects, strict=True) if attribute in c
        ]
        if stated:
            checks[attribute] = all(a == b for a, b in stated)
    if relation is not None:
        checks["relation"] = _related(objects, relation)
    places = [c["place"] for c in claimed if "place" in c]
    if places:
        checks["place"] = _placed(objects, places)
    return checks


def _num_matches(claimed: list[dict[str, str]], objects: list[Reading]) -> int:
    return sum(
        c[attribute] == getattr(o, attribute)
        for c, o in zip(claimed, objects, strict=True)
        for attribute in ("colour", "shape", "size")
        if attribute in c
    )


def _outlined(claimed: list[dict[str, str]], objects: list[Reading]) -> bool:
    stated = [(c["shape"], o) for c, o in zip(claimed, objects, strict=True) if "shape" in c]
    return all(o.shape == shape and o.is_outlined for shape, o in stated)


def _matched(
    claimed: list[dict[str, str]], objects: Sequence[Reading], relation: str | None
) -> tuple[dict[str, bool], list[Reading]]:
    """The objects in the order of the claimed ones, and what is right then. Of all orders, those with the most looks
    right, and of these the one that passes most checks."""
    orders = [list(order) for order in permutations(objects)]
    most = max(_num_matches(claimed, order) for order in orders)
    best = [(_checks(claimed, order, relation), order) for order in orders if _num_matches(claimed, order) == most]
    return max(best, key=lambda pair: sum(pair[0].values()))


def compare(claim: Claim, reading: SceneReading) -> dict[str, bool]:
    """Check a claim against what was read from an image.

    Args:
        claim: {"count": int, "objects": [{"colour", "shape", "size"?, "place"?}, ...], "relation"?: one of
            `RELATIONS` (objects[0] relation objects[1] ...), "background"?: name}.
        reading: of any image, by `read`.

    Returns:
        One entry per attribute that the claim states (see `ATTRIBUTES`), and "scene": whether all of them are true.
        Claimed objects are first matched to the objects in the image so that most colours, shapes and sizes agree, and
        only then is place compared: an image with the right objects in exchanged places fails only on relation or
        place. A wrong count fails every attribute of objects.
        Also "outline", if the claim states shapes: whether the shapes are right and every edge is within 4 % of the
        object's radius of its outline; and "scene_strict": both scene and outline.
    """
    claimed: list[dict[str, str]] = claim["objects"]
    relation: str | None = claim.get("relation")
    is_outlined = False
    result = {"count": len(reading.objects) == claim["count"]}
    if result["count"]:
        checks, objects = _matched(claimed, reading.objects, relation)
        is_outlined = _outlined(claimed, objects)
        result |= checks
    else:
        stated = {a for c in claimed for a in c} | ({"relation"} if relation is not None else set())
        result |= {attribute: False for attribute in sorted(stated)}
    if "background" in claim:
        result["background"] = reading.background == claim["background"]
    result["scene"] = all(result.values())
    if "shape" in result:
        result["outline"] = is_outlined
    result["scene_strict"] = result["scene"] and result.get("outline", True)
    return result


def told(claim: Claim, reading: SceneReading) -> list[Told]:
    """What a claim states of the scene and of each object, beside what was read. Objects are matched as in `compare`;
    if their number is wrong, it alone is told of them."""
    found = [("count", str(claim["count"]), str(len(reading.objects)))]
    if "background" in claim:
        found.append(("background", claim["background"], reading.background or _OTHER))
    if len(reading.objects) == claim["count"]:
        _, objects = _matched(claim["objects"], reading.objects, claim.get("relation"))
        for stated, seen in zip(claim["objects"], objects, strict=True):
            looks = [name for name in ("colour", "shape", "size") if name in stated]
            found += [(name, stated[name], getattr(seen, name) or _OTHER) for name in looks]
    return found


def num_objects(claim: Claim) -> int:
    """Number of objects that a claim states."""
    return int(claim["count"])


def check(image: UInt8[np.ndarray, "h w 3"], claims: Sequence[Claim]) -> list[dict[str, bool]]:
    """Check claims against a square RGB image: `read` the scene once, then `compare` each claim with it."""
    reading = read(image)
    return [compare(claim, reading) for claim in claims]


ORACLE = Oracle(
    attributes=(*ATTRIBUTES, "scene", *STRICT),
    headlines=("scene", "scene_strict"),
    highlights=("relation",),
    labels={"scene": "whole scene", "scene_strict": "whole scene, strict outlines", "outline": "strict outlines"},
    counted="object",
    count=num_objects,
    read=read,
    compare=compare,
    told=told,
)
