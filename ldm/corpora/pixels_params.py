"""Params of a user's images: which are fit to train on, and how they become pixels."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ldm.core.config import Section

Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]


class PixelParams(Section):
    """Which of a user's images are fit to train on; everything else is rejected with a reason."""

    min_side_px: PositiveInt
    """Minimum of an image's shorter side; images below the image size are scaled up."""
    max_pixels: int = Field(gt=0, le=89_478_485)
    """Most pixels that an image may declare in its header: larger ones are never decoded. Pillow allows no more."""
    max_bytes: PositiveInt
    """Size of the largest file that is opened."""
    max_aspect_ratio: float = Field(ge=1)
    """Maximum of longer side over shorter side; beyond that, the centre square would be a sliver of the image."""
    background: Colour
    """Colour behind transparent images, as "#rrggbb"."""
    deep_greyscale: Literal["scale", "reject"]
    """16-bit greyscale: scaled to 8 bits (65535 becomes 255), or rejected."""
    resampling: Literal["area", "lanczos"]
    """Filter of the resize: mean over the covered area, or Lanczos, which is sharper and overshoots at edges."""
