"""How often the oracle accepts the outlines of real, degraded and deformed objects: the table of docs/oracle.md.

`python -m studies.outlines` takes about a minute on one core; every number follows from the seed.
"""

import cmath
import io
import math
import random
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter

from ldm.corpora import shapes_scenes
from ldm.corpora import shapes_vocabulary as vocabulary
from ldm.oracles import shapes as oracle

Point = tuple[float, float]
Deform = Callable[[str, float, random.Random], list[Point]]
_SUPERSAMPLING = 4
_POINTS_PER_SIDE = 40


def as_it_is(shape: str, radius: float, rng: random.Random) -> list[Point]:
    """The outline that the corpus draws."""
    return vocabulary.outline(shape, radius)


def rounded(fraction: float) -> Deform:
    """Corners, inner ones too, become arcs of `fraction` of the radius, or of what the sides leave room for."""

    def deform(shape: str, radius: float, rng: random.Random) -> list[Point]:
        corners = [np.array(corner) for corner in vocabulary.outline(shape, radius)]
        arcs = zip(corners[-1:] + corners[:-1], corners, corners[1:] + corners[:1], strict=True)
        return [point for before, corner, after in arcs for point in _arc(before, corner, after, fraction * radius)]

    return deform


def _arc(before: np.ndarray, corner: np.ndarray, after: np.ndarray, radius: float) -> list[Point]:
    length_in, length_out = float(np.linalg.norm(before - corner)), float(np.linalg.norm(after - corner))
    inward, outward = (before - corner) / length_in, (after - corner) / length_out
    half = math.acos(float(inward @ outward)) / 2
    cut = min(radius / math.tan(half), length_in / 2, length_out / 2)
    bisector = (inward + outward) / np.linalg.norm(inward + outward)
    centre = corner + bisector * cut / math.cos(half)
    start, end = (math.atan2(*(corner + cut * side - centre)[::-1]) for side in (inward, outward))
    turn = (end - start + math.pi) % (2 * math.pi) - math.pi
    angles = [start + turn * i / 12 for i in range(13)]
    arc_radius = cut * math.tan(half)
    return [(float(centre[0]) + arc_radius * math.cos(a), float(centre[1]) + arc_radius * math.sin(a)) for a in angles]


def bent(fraction: float) -> Deform:
    """Sides become parabolas whose middles stand out (negative: in) by `fraction` of the radius."""

    def deform(shape: str, radius: float, rng: random.Random) -> list[Point]:
        corners = [complex(*corner) for corner in vocabulary.outline(shape, radius)]
        points: list[complex] = []
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            outward = -1j * (end - start) / abs(end - start) * fraction * radius
            along = np.linspace(0, 1, _POINTS_PER_SIDE, endpoint=False).tolist()
            points += [start + (end - start) * t + outward * 4 * t * (1 - t) for t in along]
        return [(point.real, point.imag) for point in points]

    return deform


def polygonal(num_corners: int) -> Deform:
    """A regular polygon, turned at random, instead of a disc."""

    def deform(shape: str, radius: float, rng: random.Random) -> list[Point]:
        first = rng.uniform(0, 2 * math.pi)
        angles = [first + 2 * math.pi * i / num_corners for i in range(num_corners)]
        return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]

    return deform


def wobbly(fraction: float) -> Deform:
    """The distance from the centre swings by `fraction` of the radius, 3 to 7 times around."""

    def deform(shape: str, radius: float, rng: random.Random) -> list[Point]:
        times, phase = rng.randint(3, 7), rng.uniform(0, 2 * math.pi)
        points = [complex(*point) for point in bent(0.0)(shape, radius, rng)]
        swings = [fraction * radius * math.sin(times * cmath.phase(point) + phase) for point in points]
        moved = [point * (1 + swing / abs(point)) for point, swing in zip(points, swings, strict=True)]
        return [(point.real, point.imag) for point in moved]

    return deform


def scaled_waist(factor: float) -> Deform:
    """Arms of a cross `factor` times as wide, inner corners of a star `factor` times as far from its centre."""

    def deform(shape: str, radius: float, rng: random.Random) -> list[Point]:
        points = vocabulary.outline(shape, radius)
        if shape == "star":
            return [(x * factor, y * factor) if i % 2 else (x, y) for i, (x, y) in enumerate(points)]
        width = min(abs(x) for x, _ in points)
        return [(x * factor if abs(x) == width else x, y * factor if abs(y) == width else y) for x, y in points]

    return deform


def squeezed(fraction: float) -> Deform:
    """Wider than high by `fraction`."""
    return lambda shape, radius, rng: [
        (x * (1 + fraction / 2), y * (1 - fraction / 2)) for x, y in vocabulary.outline(shape, radius)
    ]


def turned(degrees: float) -> Deform:
    """Turned clockwise."""
    turn = complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))

    def deform(shape: str, radius: float, rng: random.Random) -> list[Point]:
        points = [complex(x, y) * turn for x, y in vocabulary.outline(shape, radius)]
        return [(point.real, point.imag) for point in points]

    return deform


def jpeg(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Through a JPEG of quality 75."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=75)
    return np.asarray(Image.open(stream))


def blurred(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Through a Gaussian of 0.7 pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.7)))


_ANGULAR = tuple(shape for shape in vocabulary.SHAPES if shape != "circle")
DEFORMATIONS: dict[str, tuple[Sequence[str], Deform]] = {
    "as it is": (vocabulary.SHAPES, as_it_is),
    **{f"corners rounded by {p} % of the radius": (_ANGULAR, rounded(p / 100)) for p in (10, 20, 30)},
    **{f"sides bent by {p:+} % of the radius": (_ANGULAR, bent(p / 100)) for p in (5, 10, -5, -10)},
    **{f"disc of {n} corners": (("circle",), polygonal(n)) for n in (6, 8, 10, 12)},
    **{f"wobble of {p} % of the radius": (vocabulary.SHAPES, wobbly(p / 100)) for p in (5, 10)},
    **{f"arms of a cross {f} times as wide": (("cross",), scaled_waist(f)) for f in (0.75, 1.3)},
    **{f"inner corners of a star {f} times as far out": (("star",), scaled_waist(f)) for f in (0.75, 1.3)},
    **{f"wider than high by {p} %": (vocabulary.SHAPES, squeezed(p / 100)) for p in (10, 20)},
    **{f"turned by {d} degrees": (_ANGULAR, turned(d)) for d in (5, 10)},
}
"""Name -> shapes that it may happen to, and how."""


def render(scene: shapes_scenes.Scene, size_px: int, deform: Deform, rng: random.Random) -> UInt8[np.ndarray, "h w 3"]:
    """`shapes_scenes.render` with other outlines."""
    side = size_px * _SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), scene.background_rgb)
    for o in scene.objects:
        points = [((o.x + dx) * side, (o.y + dy) * side) for dx, dy in deform(o.shape, o.radius, rng)]
        ImageDraw.Draw(canvas).polygon(points, fill=o.rgb)
    return np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX))


def random_scene(rng: random.Random, names: Sequence[str], sizes: Sequence[str], count: int) -> shapes_scenes.Scene:
    """Objects of any colours and of given shapes and sizes, placed as the corpus places them; nothing is held out."""
    arrangement = rng.choice(list(vocabulary.ANCHORS) if count == 1 else list(vocabulary.AXES))
    objects: list[shapes_scenes.Object] = []
    for i, (colour, shape) in enumerate(rng.sample(list(product(vocabulary.COLOURS, names)), count)):
        along, across = (i + 0.5) / count + rng.uniform(-0.04, 0.04) / count, 0.5 + rng.uniform(-0.02, 0.02)
        x, y = (across, along) if arrangement == "vertical" else (along, across)
        if count == 1:
            x, y = (v + rng.uniform(-0.02, 0.02) for v in vocabulary.ANCHORS[arrangement])
        size = rng.choice(sizes)
        radius = vocabulary.RADII[size] * rng.uniform(0.94, 1.06) * min(1.0, 2 / count)
        objects.append(
            shapes_scenes.Object(colour, shape, size, x, y, radius, _near(rng, vocabulary.COLOURS[colour], 8))
        )
    background = rng.choice(list(vocabulary.BACKGROUNDS))
    return shapes_scenes.Scene(
        tuple(objects), arrangement, background, _near(rng, vocabulary.BACKGROUNDS[background], 4)
    )


def _near(rng: random.Random, rgb: vocabulary.Rgb, width: int) -> vocabulary.Rgb:
    red, green, blue = (min(255, max(0, value + rng.randint(-width, width))) for value in rgb)
    return red, green, blue


def passed(
    name: str,
    size: str,
    num_scenes: int,
    *,
    count: int = 1,
    size_px: int = 64,
    degrade: Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w 3"]] = np.asarray,
) -> dict[str, float]:
    """Share of scenes whose shapes (by overlap) and whose outlines (strictly) are accepted."""
    names, deform = DEFORMATIONS[name]
    rng = random.Random(f"{name}/{size}/{count}")
    hits = {"shape": 0, "outline": 0}
    for _ in range(num_scenes):
        scene = random_scene(rng, names, [size], count)
        claim = {"count": count, "objects": [{"colour": o.colour, "shape": o.shape} for o in scene.objects]}
        (result,) = oracle.check(degrade(render(scene, size_px, deform, rng)), [claim])
        hits = {key: hits[key] + result[key] for key in hits}
    return {key: value / num_scenes for key, value in hits.items()}


def main() -> None:
    """Print the table as Markdown."""
    num_scenes = 200
    degradations = {"": np.asarray, ", JPEG of quality 75": jpeg, ", blur of 0.7 pixels": blurred}
    print("| objects | overlap, small | outline, small | overlap, large | outline, large |\n|---|---|---|---|---|")
    rows = {
        f"real, {count} in {size_px} px{words}": ("as it is", count, size_px, degrade)
        for count, size_px in ((1, 64), (2, 64), (3, 64), (2, 32), (2, 128))
        for words, degrade in degradations.items()
    }
    rows |= {name: (name, 1, 64, np.asarray) for name in DEFORMATIONS if name != "as it is"}
    for title, (name, count, size_px, degrade) in rows.items():
        found = [passed(name, s, num_scenes, count=count, size_px=size_px, degrade=degrade) for s in vocabulary.RADII]
        cells = [f"{100 * share[key]:.1f} %" for share in found for key in ("shape", "outline")]
        print("|".join(["", f" {title} ", *(f" {cell} " for cell in cells), ""]), flush=True)


if __name__ == "__main__":
    main()
