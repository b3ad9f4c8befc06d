"""Which of a user's images are fit to train on, and how their pixels are made."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ldm.core.config import Section

Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
Format = Literal["jpeg", "png", "webp", "avif", "gif", "tiff", "bmp", "heic", "jxl"]
"""Formats that can be decoded."""


class PixelParams(Section):
    """Which of a user's images are fit to train on; everything else is rejected with a reason."""

    formats: Annotated[list[Format], Field(min_length=1)]
    """Formats that are decoded, told by content and not by name; each one is a parser that meets the bytes of
    strangers. `heic` and `jxl` need the extras of the same names: `pip install 'ldm[heif]'`, `'ldm[jxl]'`."""
    min_side_px: PositiveInt
    """Minimum of an image's shorter side; images below the image size are scaled up."""
    max_pixels: int = Field(gt=0, le=500_000_000)
    """Most pixels that an image may declare in its header: larger ones are never decoded. Decoding takes about 12 bytes
    of memory per pixel."""
    max_bytes: PositiveInt
    """Size of the largest file that is opened."""
    max_aspect_ratio: float = Field(ge=1)
    """Maximum of longer side over shorter side; beyond that, the centre square would be a sliver of the image."""
    background: Colour
    """Colour behind transparent images, as "#rrggbb"."""
    deep_greyscale: Literal["scale", "reject"]
    """16-bit greyscale, with or without transparency: scaled to 8 bits (65535 becomes 255), or rejected."""
    resampling: Literal["area", "lanczos"]
    """Filter of the resize: mean over the covered area, or Lanczos, which is sharper and overshoots at edges."""
