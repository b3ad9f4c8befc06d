"""Images as encoded bytes, arrays and captioned grids. Only this module and the corpora use Pillow."""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ldm.core.errors import IntegrityError

if TYPE_CHECKING:
    from torch import Tensor

_MIN_CELL_PX = 128
_CAPTION_PX = 13
_NUM_CAPTION_LINES = 4
_CUT = "..."
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


def to_tensor(encoded: Sequence[bytes]) -> 'UInt8[Tensor, "b 3 h w"]':
    """Decode images of one size into a contiguous batch."""
    import torch

    batch = np.stack([decode(data) for data in encoded])
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))


def grid(
    images: 'UInt8[np.ndarray, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]', num_columns: int, captions: Sequence[str] | None
) -> Image.Image:
    """One picture of all images in reading order, each above its caption; `.save(path)` writes it.

    Images below 128 px are magnified by a whole factor, without smoothing, so that captions fit and pixels stay
    visible. A caption is wrapped to four lines; "..." marks what is cut off. Tensors must be on the CPU.
    """
    cells = np.asarray(images).transpose(0, 2, 3, 1)
    assert captions is None or len(captions) == len(cells), "one caption per image"
    factor = max(1, math.ceil(_MIN_CELL_PX / cells.shape[2]))
    height, width = cells.shape[1] * factor, cells.shape[2] * factor
    caption_px = 0 if captions is None else _NUM_CAPTION_LINES * (_CAPTION_PX + 2)
    num_rows = math.ceil(len(cells) / num_columns)
    step_x, step_y = width + _GAP_PX, height + caption_px + _GAP_PX
    canvas = Image.new("RGB", (num_columns * step_x + _GAP_PX, num_rows * step_y + _GAP_PX), "white")
    for i, cell in enumerate(cells):
        x, y = _GAP_PX + i % num_columns * step_x, _GAP_PX + i // num_columns * step_y
        canvas.paste(Image.fromarray(cell).resize((width, height), Image.Resampling.NEAREST), (x, y))
        if captions is not None:
            _write_caption(ImageDraw.Draw(canvas), captions[i], x, y + height, width)
    return canvas


def _write_caption(draw: ImageDraw.ImageDraw, caption: str, x: int, y: int, width: int) -> None:
    # Pillow's embedded font gives the same picture on every machine.
    font = ImageFont.load_default(_CAPTION_PX)
    lines = _wrap(caption, font, width)
    if len(lines) > _NUM_CAPTION_LINES:
        lines[_NUM_CAPTION_LINES - 1] = _cut(lines[_NUM_CAPTION_LINES - 1], font, width) + _CUT
    for i, line in enumerate(lines[:_NUM_CAPTION_LINES]):
        draw.text((x, y + 1 + i * (_CAPTION_PX + 2)), line, fill="black", font=font)


def _cut(line: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> str:
    """The start of a line, short enough for "..." to fit behind it."""
    while font.getlength(line + _CUT) > width:
        line = line[:-1]
    return line


def _wrap(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> list[str]:
    """Words in lines of at most `width` pixels; a longer word is cut to one line."""
    lines: list[str] = []
    for word in text.split():
        while font.getlength(word) > width:
            word = word[:-1]
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
