"""Pictures that tasks start from: read from files, hashed, brought to the size of the model."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ldm.core import system
from ldm.core.errors import ConfigError
from ldm.core.params import Size
from ldm.corpora import framing
from ldm.corpora import pixels as decoding
from ldm.corpora.pairs import Rejected
from ldm.corpora.pixels_params import PixelParams, SquareParams
from ldm.tools.tasks import masks

_FILE = "a PNG, JPEG or WebP file"
_WHITE = 128
"""Least value of a pixel of a mask that counts as white."""
_ANY = PixelParams(
    formats=["png", "jpeg", "webp"],
    min_side_px=1,
    max_pixels=89_478_485,
    max_bytes=2**28,
    max_aspect_ratio=1e6,
    background="#ffffff",
    deep_greyscale="scale",
    resampling="area",
    framing=SquareParams(kind="square", crop="centre"),
)
"""What is accepted: all that can be decoded. Transparent images are laid on white, masks on black."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of any size and the hash that a PNG made from it carries."""

    pixels: UInt8[np.ndarray, "h w 3"]
    sha256: str
    where: str = "image"
    """Its name in messages."""


Source = str | Path | Picture | UInt8[Tensor, "3 h w"]
"""A file, or pixels; for a mask also one of `masks.NAMES`."""
Images = Source | Sequence[Source]
"""One for all prompts, or one per prompt."""


def rows(given: Mapping[str, Images], num: int) -> list[dict[str, Picture]]:
    """The pictures of `num` images. ConfigError: as in `row`, or there are others than one or `num` of a name."""
    columns = {name: _column(images) for name, images in given.items()}
    for name, column in columns.items():
        if len(column) not in (1, num):
            fix = "give one for all prompts, or one for each"
            raise ConfigError(name, f"{len(column)} pictures", f"1 or {num}, as there are prompts", fix)
    longest = num_rows(given)
    found = [row({name: column[i % len(column)] for name, column in columns.items()}) for i in range(longest)]
    return found if longest == num else found * num


def num_rows(given: Mapping[str, Images]) -> int:
    """How many images the pictures are for; 1 without any."""
    return max((len(_column(images)) for images in given.values()), default=1)


def row(sources: Mapping[str, Source]) -> dict[str, Picture]:
    """The pictures of one image. ConfigError: one is no picture, or the mask has another size than the image, or
    nothing of it is white."""
    found = {name: _picture(source, name) for name, source in sources.items() if name != "mask"}
    if "mask" in sources:
        if "image" not in found:
            raise ConfigError("mask", "no image with it", "the image that it belongs to", "give the image too")
        found["mask"] = _mask(sources["mask"], found["image"])
    return found


def read(path: Path, **params: Any) -> Picture:
    """A JPEG, PNG or WebP file; its hash is that of the file. params: as in `decoded`. ConfigError: it cannot be
    read or decoded."""
    try:
        return decoded(path.read_bytes(), str(path), **params)
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file", _FILE, "name one that exists") from None
    except OSError as error:
        raise system.explain(error, str(path), ConfigError) from None


def decoded(data: bytes, where: str, **params: Any) -> Picture:
    """The same of the bytes of a file. params: fields of `PixelParams` that are others, such as `max_pixels`."""
    allowed = _ANY.model_copy(update=params)
    try:
        if len(data) > allowed.max_bytes:
            raise Rejected("TOO_MANY_BYTES", f"{len(data)} bytes, at most {allowed.max_bytes}")
        return Picture(decoding.whole(data, allowed).pixels, hashlib.sha256(data).hexdigest(), where)
    except Rejected as error:
        found = f"no image that can be read ({error.reason}: {error.detail})"
        raise ConfigError(where, found, _FILE, "name a PNG, JPEG or WebP file of one image") from error


def of(pixels: UInt8[np.ndarray, "h w 3"], where: str = "image") -> Picture:
    """Pixels in memory; the hash is that of their bytes, row by row."""
    pixels = np.ascontiguousarray(pixels)
    return Picture(pixels, hashlib.sha256(pixels.tobytes()).hexdigest(), where)


def fitted(picture: Picture, size: Size) -> UInt8[Tensor, "3 h w"]:
    """The largest part in the middle that has the shape of `size`, resized as stage `prepare` does; an image of that
    size stays as it is in every bit."""
    return torch.from_numpy(framing.resized(picture.pixels, _ANY.resampling, size).transpose(2, 0, 1).copy())


def white(mask: Picture, size: Size) -> Bool[Tensor, "1 h w"]:
    """Where a mask is white at the size of `fitted`: a pixel is if any that it covers is."""
    # The mean of bytes would round one white pixel of many away.
    means = framing.resized(_is_white(mask.pixels).astype(np.float32), _ANY.resampling, size)
    return torch.from_numpy(means > 0)[None]


def _column(images: Images) -> Sequence[Source]:
    if isinstance(images, str | Path | Picture):
        return [images]
    return [images] if isinstance(images, Tensor) and images.dim() == 3 else list(images)


def _picture(source: Source, name: str, **params: Any) -> Picture:
    if isinstance(source, Picture):
        return source
    if isinstance(source, str | Path):
        return read(Path(source), **params)
    if not (isinstance(source, Tensor) and source.dtype == torch.uint8 and source.dim() == 3 and len(source) == 3):  # pyright: ignore[reportUnnecessaryIsInstance]
        fix = "give a path, or pixels as a tensor"
        raise ConfigError(name, f"a {type(source).__name__}", "a path or a uint8 tensor [3 h w]", fix)
    return of(source.permute(1, 2, 0).cpu().numpy(), name)


def _mask(source: Source, image: Picture) -> Picture:
    if isinstance(source, str) and source in masks.NAMES:
        is_white = masks.named(source, *image.pixels.shape[:2])
        return of(_black_and_white(is_white), f"mask {source}")
    if isinstance(source, str) and not Path(source).exists():
        expected = f"{_FILE}, or a mask of a name: {', '.join(masks.NAMES)}"
        raise ConfigError(source, "no such file", expected, "name one of them")
    # Brush strokes are white, and all else of their layer is transparent.
    mask = _picture(source, "mask", background="#000000")
    sizes = [f"{height} x {width} pixels" for height, width in (mask.pixels.shape[:2], image.pixels.shape[:2])]
    if sizes[0] != sizes[1]:
        raise ConfigError(mask.where, sizes[0], f"{sizes[1]}, as {image.where}", "give a mask of the image's size")
    if not _is_white(mask.pixels).any():
        fix = "paint white what is to be drawn anew"
        raise ConfigError(mask.where, "a mask without any white pixel", "white where to draw", fix)
    return mask


def _is_white(pixels: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    return pixels.max(2) >= _WHITE


def _black_and_white(is_white: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(np.where(is_white, 255, 0).astype(np.uint8)[..., None], 3, 2)
