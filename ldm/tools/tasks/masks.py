"""Masks by name, after those that RePaint is measured on (Lugmayr et al. 2022, section 5): true where to draw."""

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool

Places = npt.NDArray[Any]
Name = Literal["thin", "wide", "half", "expand", "lines", "grid"]
NAMES: tuple[Name, ...] = get_args(Name)


def named(name: Name, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask of a name at a size.

    - `thin`: two lines across and two down, each a sixteenth of the side wide.
    - `wide`: the centre square of half the side.
    - `half`: the right half.
    - `expand`: all but the centre square of a quarter of the side.
    - `lines`: every second row.
    - `grid`: all but every second pixel of every second row.
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
        case "grid":
            return (y % 2 == 1) | (x % 2 == 1)


def _is_on_line(place: Places, side: int) -> Places:
    thickness = max(side // 16, 1)
    return ((place - side // 4) % (side // 2 or 1)) < thickness


def _is_central(place: Places, side: int, part: int) -> Places:
    """Whether a place is in the middle `part`-th of the side."""
    first = (side - side // part) // 2
    return (place >= first) & (place < first + side // part)
