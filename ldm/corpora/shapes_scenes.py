"""Scenes of the corpus `shapes`: a few coloured shapes, how they are arranged, which of them are kept out of training,
and their pictures. A scene is drawn from (seed, split, number) alone.
"""

import hashlib
import random
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from ldm.core.shards import Split
from ldm.corpora.params import ShapesParams
from ldm.corpora.shapes_vocabulary import ANCHORS, AXES, BACKGROUNDS, COLOURS, RADII, SHAPES, Rgb, outline

_JITTER = 0.02
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Object:
    """One shape: named attributes, centre and half extent as fractions of the image side, and its exact colour."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    rgb: Rgb


@dataclass(frozen=True)
class Scene:
    """Objects in reading order (top to bottom or left to right), how they are arranged, and the background.

    `arrangement` is a place name for one object and an axis ("vertical", "horizontal") for several.
    """

    objects: tuple[Object, ...]
    arrangement: str
    background: str
    background_rgb: Rgb


Composition = tuple[str, ...]
"""A (colour, shape) pair, or a (first shape, axis, second shape) triple: "a above b" and "b below a" are one triple."""


def _tenths(name: str, items: list[Composition]) -> dict[Split, frozenset[Composition]]:
    """Two fixed tenths of `items`, chosen by hash so that adding a shape moves as few choices as possible."""
    ranked = sorted(items, key=lambda item: hashlib.sha256("/".join((name, *item)).encode()).digest())
    size = max(1, round(len(items) / 10))
    return {"held_out": frozenset(ranked[:size]), "unseen": frozenset(ranked[size : 2 * size])}


RESERVED_PAIRS = _tenths("pair", list(product(COLOURS, SHAPES)))
"""Split -> the pairs that it alone contains."""
RESERVED_TRIPLES = _tenths("triple", list(product(SHAPES, AXES, SHAPES)))
"""Split -> the triples that it alone contains."""


def reserved_for(scene: Scene) -> set[Split]:
    """The splits that the scene's pairs and triples are reserved for; none for a scene to train on."""
    pairs = {(o.colour, o.shape) for o in scene.objects}
    neighbours = zip(scene.objects, scene.objects[1:], strict=False)
    triples = {(a.shape, scene.arrangement, b.shape) for a, b in neighbours}
    return {split for split in RESERVED_PAIRS if pairs & RESERVED_PAIRS[split] or triples & RESERVED_TRIPLES[split]}


def _jitter_rgb(rng: random.Random, rgb: Rgb, width: int) -> Rgb:
    red, green, blue = (min(255, max(0, value + rng.randint(-width, width))) for value in rgb)
    return red, green, blue


def _centres(rng: random.Random, arrangement: str, count: int) -> list[tuple[float, float]]:
    if count == 1:
        x, y = ANCHORS[arrangement]
        return [(x + rng.uniform(-_JITTER, _JITTER), y + rng.uniform(-_JITTER, _JITTER))]
    along = [(i + 0.5) / count for i in range(count)]
    centres = [(a + rng.uniform(-_JITTER, _JITTER) * 2 / count, 0.5 + rng.uniform(-_JITTER, _JITTER)) for a in along]
    return centres if arrangement == "horizontal" else [(across, a) for a, across in centres]


def _draw_scene(rng: random.Random, weights: list[float]) -> Scene:
    count = rng.choices(range(1, len(weights) + 1), weights)[0]
    arrangement = rng.choice(list(AXES) if count > 1 else list(ANCHORS))
    looks = rng.sample(list(product(COLOURS, SHAPES)), count)
    objects: list[Object] = []
    for (colour, shape), (x, y) in zip(looks, _centres(rng, arrangement, count), strict=True):
        size = rng.choice(list(RADII))
        radius = RADII[size] * rng.uniform(0.94, 1.06) * min(1.0, 2 / count)
        objects.append(Object(colour, shape, size, x, y, radius, _jitter_rgb(rng, COLOURS[colour], 8)))
    background = rng.choice(list(BACKGROUNDS))
    return Scene(tuple(objects), arrangement, background, _jitter_rgb(rng, BACKGROUNDS[background], 4))


def _twin(scene: Scene) -> Scene:
    """The same objects with their places exchanged (one object: moved to the opposite place)."""
    if len(scene.objects) == 1:
        opposite = {"top": "bottom", "bottom": "top", "left": "right", "right": "left", "centre": "centre"}
        (only,) = scene.objects
        moved = replace(only, x=1 - only.x, y=1 - only.y)
        return replace(scene, objects=(moved,), arrangement=opposite[scene.arrangement])
    moved = [replace(o, x=p.x, y=p.y) for o, p in zip(reversed(scene.objects), scene.objects, strict=True)]
    return replace(scene, objects=tuple(moved))


def scene_at(number: int, split: Split, params: ShapesParams) -> Scene:
    """The scene of one sample: a pure function of (params.seed, split, number).

    Odd numbers are the twin of the even number before them: the same objects with their places exchanged. A scene of
    `unseen` or `held_out` contains something that is reserved for its split; no scene contains what is reserved for
    another.
    """
    wanted = {split} & RESERVED_PAIRS.keys()
    rng = random.Random(f"{params.seed}/{split}/{number // 2}")
    while True:
        scene = _draw_scene(rng, params.object_count_weights)
        both = (scene, _twin(scene))
        if all(reserved_for(s) == wanted for s in both):
            return both[number % 2]


def render(scene: Scene, size_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the scene, anti-aliased, as a square RGB image of `size_px` pixels."""
    side = size_px * _SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), scene.background_rgb)
    draw = ImageDraw.Draw(canvas)
    for o in scene.objects:
        draw.polygon([((o.x + dx) * side, (o.y + dy) * side) for dx, dy in outline(o.shape, o.radius)], fill=o.rgb)
    return np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX))
