"""Pictures that tasks start from: read from files, hashed, brought to the size of the model."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ldm.core import system
from ldm.core.errors import ConfigError
from ldm.corpora import cleaning
from ldm.corpora.pairs import Rejected
from ldm.corpora.params import CleaningParams
from ldm.tools.tasks import masks

_WHITE = 128
"""Least value of a pixel of a mask that counts as white."""
_ANY = CleaningParams(
    min_side_px=1,
    max_pixels=89_478_485,
    max_bytes=2**28,
    max_aspect_ratio=1e6,
    background="#ffffff",
    deep_greyscale="scale",
    resampling="area",
    max_caption_characters=1,
)
"""What is accepted: all that can be decoded. Transparent images are laid on white."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of any size and the hash that a PNG made from it carries."""

    pixels: UInt8[np.ndarray, "h w 3"]
    sha256: str
    where: str = "image"
    """Its name in messages."""


def read(path: Path) -> Picture:
    """A JPEG, PNG or WebP file; its hash is that of the file. ConfigError: it cannot be read or decoded."""
    fix = "name a PNG, JPEG or WebP file of one image"
    try:
        data = path.read_bytes()
        return Picture(cleaning.whole(data, _ANY), hashlib.sha256(data).hexdigest(), str(path))
    except OSError as error:
        raise system.explain(error, str(path), ConfigError) from None
    except Rejected as error:
        raise ConfigError(str(path), f"no image that can be read ({error})", "a PNG, JPEG or WebP file", fix) from None


def mask(source: str | Path, image: Picture) -> Picture:
    """A mask by its name in `masks.NAMES`, at the size of its image, or a file. ConfigError: as `read`."""
    if str(source) not in masks.NAMES:
        return read(Path(source))
    white = masks.named(masks.NAMES[masks.NAMES.index(str(source))], *image.pixels.shape[:2])  # pyright: ignore[reportArgumentType]
    return replace(of(np.repeat(np.where(white, 255, 0).astype(np.uint8)[..., None], 3, 2)), where=str(source))


def of(pixels: UInt8[np.ndarray, "h w 3"]) -> Picture:
    """Pixels in memory; the hash is that of their bytes, row by row."""
    pixels = np.ascontiguousarray(pixels)
    return Picture(pixels, hashlib.sha256(pixels.tobytes()).hexdigest())


Images = str | Path | Picture | UInt8[Tensor, "3 h w"] | Sequence["str | Path | Picture | UInt8[Tensor, '3 h w']"]
"""A picture for all prompts, or one per prompt: files, or pixels."""


def several(images: Images, num: int, name: str) -> list[Picture]:
    """`num` pictures. ConfigError: there are others than one or `num`, or one cannot be read."""
    alone = isinstance(images, str | Path | Picture) or (isinstance(images, Tensor) and images.dim() == 3)
    found = [_picture(image, name) for image in ([images] if alone else images)]  # pyright: ignore[reportGeneralTypeIssues]
    if len(found) not in (1, num):
        raise ConfigError(name, f"{len(found)} pictures", f"one, or {num} as there are prompts", "give one for each")
    return found * num if len(found) == 1 else found


def _picture(image: Any, name: str) -> Picture:
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return read(Path(image))
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3 and len(image) == 3:
        return of(image.permute(1, 2, 0).cpu().numpy())
    fix = "give a path, or pixels as a tensor"
    raise ConfigError(name, f"{type(image).__name__}", "a path or a uint8 tensor [3 h w]", fix)


def fitted(picture: Picture, size_px: int) -> UInt8[Tensor, "3 h w"]:
    """The centre square, resized as stage `prepare` does; an image of that size stays as it is in every bit."""
    return torch.from_numpy(cleaning.square(picture.pixels, _ANY, size_px).transpose(2, 0, 1).copy())


def white(mask: Picture, size_px: int) -> Bool[Tensor, "1 h w"]:
    """Where a mask is white at the size of `fitted`: a pixel is if any that it covers is."""
    bright = np.where(mask.pixels.max(2, keepdims=True) >= _WHITE, 255, 0).astype(np.uint8)
    return fitted(Picture(np.repeat(bright, 3, 2), ""), size_px)[:1] > 0


def check_row(row: Mapping[str, Picture]) -> None:
    """ConfigError: there is a mask, and it has another size than its image, or nothing of it is white."""
    if "mask" not in row:
        return
    image, mask = row["image"], row["mask"]
    sizes = [f"{height} x {width} pixels" for height, width in (mask.pixels.shape[:2], image.pixels.shape[:2])]
    if sizes[0] != sizes[1]:
        raise ConfigError(mask.where, sizes[0], f"{sizes[1]}, as {image.where}", "give a mask of the image's size")
    if not (mask.pixels >= _WHITE).any():
        fix = "paint white what is to be drawn anew"
        raise ConfigError(mask.where, "a mask without any white pixel", "white where to draw", fix)
