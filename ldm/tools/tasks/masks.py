"""Masks by name, after those that RePaint is measured on (Lugmayr et al. 2022, section 5): true where to draw."""

from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool

Places = npt.NDArray[Any]
NAMES = ("thin", "wide", "half", "expand", "lines")


def named(name: str, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask of one of `NAMES` at a size.

    - `thin`: two lines across and two down, each a sixteenth of the side wide.
    - `wide`: the centre square of half the side.
    - `half`: the right half.
    - `expand`: all but the centre square of a quarter of the side.
    - `lines`: every second row.
    """
    y, x = np.ogrid[:height, :width]
    match name:
        case "thin":
            return _is_on_line(y, height) | _is_on_line(x, width)
        case "wide":
            return _is_central(y, height, 2) & _is_central(x, width, 2)
        case "half":
            return np.broadcast_to(x >= width // 2, (height, width))
        case "expand":
            return ~(_is_central(y, height, 4) & _is_central(x, width, 4))
        case "lines":
            return np.broadcast_to(y % 2 == 1, (height, width))
        case _:
            raise AssertionError(f"no mask {name}")


def grid(height: int, width: int, factor: int) -> Bool[np.ndarray, "h w"]:
    """All but every `factor`-th pixel of every `factor`-th row."""
    y, x = np.ogrid[:height, :width]
    return (y % factor != 0) | (x % factor != 0)


def _is_on_line(place: Places, side: int) -> Places:
    thickness = max(side // 16, 1)
    return ((place - side // 4) % (side // 2 or 1)) < thickness


def _is_central(place: Places, side: int, part: int) -> Places:
    """Whether a place is in the middle `part`-th of the side."""
    first = (side - side // part) // 2
    return (place >= first) & (place < first + side // part)
