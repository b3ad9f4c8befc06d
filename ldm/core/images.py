"""Images as encoded bytes, arrays and captioned grids."""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ldm.core import lettering
from ldm.core.errors import IntegrityError

if TYPE_CHECKING:
    from torch import Tensor

_MIN_CELL_PX = 128
_NUM_CAPTION_LINES = 4
_GAP_PX = 4
_MAX_SIDE_PX = 8192
_END = b"IEND\xaeB`\x82"
_NO_PNG = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What Pillow raises for bytes that are not a PNG, or that declare too many pixels."""


def encode(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An image for a shard, as lossless WebP: equal pixels give equal bytes under one Pillow.

    `python -m benchmarks.data` compares: at 256 px it takes a tenth of the time of a PNG, and four fifths of the
    bytes. A JPEG's own bytes would be smaller, but which pixels they make depends on the decoder of each machine.
    """
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, f"{image.dtype} {image.shape}"
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", lossless=True, quality=0, method=0)
    return stream.getvalue()


def decode(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of an image in a shard, WebP or PNG; users' images go through `ldm.corpora.pixels`."""
    with _opened(data, "WEBP", "PNG") as image:
        assert image.mode == "RGB", f"a shard holds RGB images, not {image.mode}"
        return np.asarray(image)


def decode_png(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of a PNG that `encode_png` wrote."""
    with _opened(data, "PNG") as image:
        assert image.mode == "RGB", f"an RGB image, not {image.mode}"
        return np.asarray(image)


def encode_png(image: UInt8[np.ndarray, "h w 3"], texts: Mapping[str, str] | None = None) -> bytes:
    """A PNG whose only metadata are `texts` (key -> text): equal arguments give equal bytes under one Pillow."""
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, f"{image.dtype} {image.shape}"
    chunks = PngInfo()
    for name, text in (texts or {}).items():
        chunks.add_itxt(name, text)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", pnginfo=chunks)
    return stream.getvalue()


def read_png(data: bytes, where: str) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of a PNG of any origin. IntegrityError: it is damaged, or `encode_png` cannot have written it."""
    fix = "give the PNG as it was written, not one that was truncated or saved again"
    try:
        with _opened(data, "PNG") as image:
            found = f"{image.mode}, {image.width} x {image.height} pixels, {getattr(image, 'n_frames', 1)} frame(s)"
            if image.mode != "RGB" or getattr(image, "n_frames", 1) > 1 or max(image.size) > _MAX_SIDE_PX:
                raise IntegrityError(where, found, f"one RGB image of at most {_MAX_SIDE_PX} pixels a side", fix)
            image.verify()  # compares the checksums, which decoding does not
        if _END not in data:
            raise ValueError("its end is missing")
        return decode_png(data)
    except _NO_PNG as error:
        reason = str(error).split(" <")[0]  # without the name of an object in memory
        raise IntegrityError(where, f"a damaged PNG ({reason})", "an undamaged one", fix) from error


def _opened(data: bytes, *formats: str) -> Image.Image:
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        return Image.open(io.BytesIO(data), formats=formats)


def read_text(data: bytes, key: str) -> str | None:
    """A text that `encode_png` wrote under a key, or None if these bytes are not a PNG or have no such text."""
    try:
        with _opened(data, "PNG") as image:
            text = image.info.get(key)
    except _NO_PNG:
        return None
    return str(text) if text is not None else None


def thumbnail(data: bytes, most_px: int) -> bytes:
    """An image in a shard as a page shows it: as it is, or, if a side is longer, shrunk to lossy WebP."""
    with _opened(data, "WEBP", "PNG") as image:
        if max(image.size) <= most_px:
            return data
        image.thumbnail((most_px, most_px), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=85)
    return stream.getvalue()


def to_tensor(encoded: Sequence[bytes]) -> 'UInt8[Tensor, "b 3 h w"]':
    """Decode images of one size into a contiguous batch."""
    return stacked([decode(data) for data in encoded])


def stacked(arrays: Sequence[UInt8[np.ndarray, "h w 3"]]) -> 'UInt8[Tensor, "b 3 h w"]':
    """Arrays of one size as a contiguous batch."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.stack(arrays).transpose(0, 3, 1, 2)))


def planes(encoded: Iterable[bytes]) -> list[UInt8[np.ndarray, "3 h w"]]:
    """Decode images of any sizes."""
    return [decode(data).transpose(2, 0, 1) for data in encoded]


def to_squares(encoded: Sequence[bytes], size_px: int) -> 'UInt8[Tensor, "b 3 s s"]':
    """Decode images of any sizes into a batch of their centre squares, resized to `size_px` pixels."""
    return stacked([_square(Image.fromarray(decode(data)), size_px) for data in encoded])


def _square(image: Image.Image, size_px: int) -> UInt8[np.ndarray, "s s 3"]:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = left, top, left + side, top + side
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box))


def grid(
    images: 'Iterable[UInt8[np.ndarray, "3 h w"] | UInt8[Tensor, "3 h w"]]',
    num_columns: int,
    captions: Sequence[str] | None,
) -> Image.Image:
    """One picture of all images in reading order, each above its caption; `.save(path)` writes it.

    Images below 128 px are magnified by a whole factor, without smoothing, so that captions fit and pixels stay
    visible. Images smaller than the largest one have a white frame. A caption is wrapped to four lines; "..." marks
    what is cut off. Tensors must be on the CPU.
    """
    cells = [np.asarray(image).transpose(1, 2, 0) for image in images]
    assert captions is None or len(captions) == len(cells), "one caption per image"
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    factor = max(1, math.ceil(_MIN_CELL_PX / width))
    caption_px = 0 if captions is None else _NUM_CAPTION_LINES * lettering.LINE_PX
    num_rows = math.ceil(len(cells) / num_columns)
    step_x, step_y = width * factor + _GAP_PX, height * factor + caption_px + _GAP_PX
    canvas = Image.new("RGB", (num_columns * step_x + _GAP_PX, num_rows * step_y + _GAP_PX), "white")
    draw = ImageDraw.Draw(canvas)
    for i, cell in enumerate(cells):
        x, y = _GAP_PX + i % num_columns * step_x, _GAP_PX + i // num_columns * step_y
        picture = Image.fromarray(np.ascontiguousarray(cell))
        place = x + (width - picture.width) * factor // 2, y + (height - picture.height) * factor // 2
        canvas.paste(picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST), place)
        if captions is not None:
            lettering.write(draw, captions[i], x, y + height * factor, width * factor, _NUM_CAPTION_LINES)
    return canvas
