"""Elements of scenes of the corpus `shapes`: colours, outlines, sizes, places and relations.

This is all that drawing and checking share. A change in the wording of captions therefore does not change what checks
depend on.
"""

import math

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (215, 35, 35),
    "green": (30, 130, 50),
    "blue": (45, 75, 215),
    "yellow": (245, 215, 40),
    "purple": (110, 25, 150),
    "orange": (245, 130, 25),
    "cyan": (50, 205, 220),
    "pink": (245, 140, 190),
}
BACKGROUNDS: dict[str, Rgb] = {"white": (245, 245, 245), "grey": (122, 122, 122), "black": (15, 15, 15)}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
RADII = {"small": 0.13, "large": 0.2}
"""Half the extent of an object, as a fraction of the image side."""
ANCHORS = {"centre": (0.5, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75), "left": (0.25, 0.5), "right": (0.75, 0.5)}
"""Centre of an object at a named place, as (x, y) fractions of the image side."""
AXES = {"vertical": ("top", "bottom"), "horizontal": ("left", "right")}
RELATIONS = {"above": "vertical", "below": "vertical", "left of": "horizontal", "right of": "horizontal"}


def outline(shape: str, radius: float) -> list[tuple[float, float]]:
    """Polygon of `shape` around the origin with half extent `radius`, as (x, y) corners; y points down."""
    match shape:
        case "circle":
            angles = [2 * math.pi * i / 48 for i in range(48)]
            return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]
        case "square":
            side = 0.9 * radius
            return [(-side, -side), (side, -side), (side, side), (-side, side)]
        case "triangle":
            return [(0.0, -radius), (radius, 0.85 * radius), (-radius, 0.85 * radius)]
        case "diamond":
            return [(0.0, -radius), (0.8 * radius, 0.0), (0.0, radius), (-0.8 * radius, 0.0)]
        case "star":
            lengths = [radius * (1.08 if i % 2 == 0 else 0.42) for i in range(10)]
            return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(lengths)]
        case "cross":
            w, r = 0.34 * radius, radius
            return [
                *((-w, -r), (w, -r), (w, -w), (r, -w), (r, w), (w, w)),
                *((w, r), (-w, r), (-w, w), (-r, w), (-r, -w), (-w, -w)),
            ]
        case _:
            raise AssertionError(f"no such shape: {shape}")
