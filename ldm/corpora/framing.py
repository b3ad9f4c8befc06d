"""The part of a picture that becomes an image, at the size of the image."""

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from ldm.core.params import Size
from ldm.corpora.pixels_params import FramingParams

_FILTERS = {"area": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}


def framed(
    pixels: UInt8[np.ndarray, "h w 3"],
    framing: FramingParams,
    resampling: Literal["area", "lanczos"],
    size_px: int,
    data: bytes,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image that `prepare` makes of a picture.

    size_px: side of the square; buckets have about as many pixels. data: the file of the picture. It alone chooses the
    place of a random crop, so that equal pictures give equal images in every layout of a corpus.
    """
    place = 0.5 if framing.crop == "centre" else _fraction(data)
    return resized(pixels, resampling, nearest(pixels.shape[:2], framing.sizes_px(size_px)), place)


def nearest(shape: Sequence[int], sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest to that of a picture (height, width): the factor between both ratios is
    the smallest. Of two equally near ones, the one with more pixels, then the taller one."""
    ratio = math.log(shape[1] / shape[0])
    return min(sizes, key=lambda size: (abs(math.log(size[1] / size[0]) - ratio), -size[0] * size[1], size[1]))


def resized(
    pixels: Shaped[np.ndarray, "h w *c"], resampling: Literal["area", "lanczos"], size: Size, place: float = 0.5
) -> Shaped[np.ndarray, "h2 w2 *c"]:
    """The largest part of an image that has the shape of `size`, at that size and in the same type. place: 0 = the part
    at the top or left end, 0.5 = the middle, 1 = the other end."""
    image, (height, width) = Image.fromarray(pixels), size
    if image.width * height >= image.height * width:
        part = image.height * width / height, image.height
    else:
        part = image.width, image.width * height / width
    left, top = (image.width - part[0]) * place, (image.height - part[1]) * place
    # The far end may be rounded to outside of the image, which Pillow refuses.
    box = left, top, min(left + part[0], image.width), min(top + part[1], image.height)
    return np.asarray(image.resize((width, height), _FILTERS[resampling], box=box))


def _fraction(data: bytes) -> float:
    """A number in [0, 1) that belongs to some bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"crop").digest()) / 2**64
