"""Which of a user's images are fit to train on, and how their pixels are made."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ldm.core.config import Section
from ldm.core.params import Size

Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
Format = Literal["jpeg", "png", "webp", "avif", "gif", "tiff", "bmp", "heic", "jxl"]
"""Formats that can be decoded."""

Crop = Literal["centre", "random"]


class SquareParams(Section):
    """Every image is a square: the largest one in its picture."""

    kind: Literal["square"]
    """Kind of framing."""
    crop: Crop
    """Where the square is: in the middle, or at a place that the hash of the file chooses, and that never changes."""

    def sizes_px(self, size_px: int) -> list[Size]:
        """Height and width of every image."""
        return [(size_px, size_px)]


class BucketsParams(Section):
    """Every image has the one of several sizes, the buckets, whose shape is nearest to that of its picture, so that
    little is cut off. All have about as many pixels as the square of `image_size_px` and none has more (NovelAI 2022,
    "Aspect ratio bucketing")."""

    kind: Literal["buckets"]
    """Kind of framing."""
    step_px: PositiveInt
    """Heights and widths are multiples of it; `prepare.image_size_px` must be one too. Smaller steps make more buckets,
    each of fewer images."""
    max_aspect_ratio: float = Field(ge=1)
    """Longer side over shorter side of the narrowest bucket, at most; 1 = the square alone."""
    crop: Crop
    """Which part is kept where shapes differ: the middle, or one that the hash of the file chooses, and that never
    changes."""

    def sizes_px(self, size_px: int) -> list[Size]:
        """Height and width of every bucket, from the tallest shape to the widest: for each height the largest width
        with no more pixels than the square, and the same with height and width exchanged."""
        step, most = self.step_px, int(size_px * self.max_aspect_ratio)
        halves = [(side, size_px**2 // side // step * step) for side in range(step, most + 1, step)]
        both = {size for height, width in halves for size in ((height, width), (width, height))}
        legal = [size for size in both if 0 < max(size) <= self.max_aspect_ratio * min(size)]
        return sorted(legal, key=lambda size: (size[1] / size[0], size))


FramingParams = Annotated[SquareParams | BucketsParams, Field(discriminator="kind")]


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
    """Maximum of longer side over shorter side; beyond that, the part that is kept would be a sliver of the image."""
    background: Colour
    """Colour behind transparent images, as "#rrggbb"."""
    deep_greyscale: Literal["scale", "reject"]
    """16-bit greyscale, with or without transparency: scaled to 8 bits (65535 becomes 255), or rejected."""
    resampling: Literal["area", "lanczos"]
    """Filter of the resize: mean over the covered area, or Lanczos, which is sharper and overshoots at edges."""
    framing: FramingParams
    """Which part of a picture becomes an image: `square`, or the nearest of several `buckets`."""
