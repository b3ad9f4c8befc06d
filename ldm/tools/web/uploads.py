"""Pictures that visitors give: decoded as those of a user's corpus are, and brought to the form that a task takes."""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from ldm.core import images
from ldm.core.errors import ConfigError
from ldm.corpora.pairs import Rejected
from ldm.tools.tasks import masks, pictures
from ldm.tools.tasks.pictures import Picture
from ldm.tools.web.limits import Limits

PAINTED = "what I paint"
"""The choice of a mask that is none of `masks.NAMES`."""
MASKS = (PAINTED, *masks.NAMES)
_EASEL_PX = 512
"""Least side of a picture that is painted on: those of small models are magnified."""


def read(path: str | None, name: str, limits: Limits) -> Picture:
    """The picture in an uploaded file, with the hash of the file. ConfigError: there is none, it is too large, or it
    cannot be decoded."""
    if path is None:
        raise ConfigError(name, "no picture", "a PNG, JPEG or WebP file", f"choose one as {name}")
    return _decoded(data_of(path, name), name, limits)


def data_of(path: str, name: str) -> bytes:
    """What is in a file of a visitor. ConfigError: its time is over."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ConfigError(name, "a file that was deleted meanwhile", "one of the last hour", "make it anew") from None


def fitted(picture: Picture, size_px: tuple[int, int], name: str) -> tuple[Picture, bytes]:
    """What the model sees of a picture, and the PNG that has the hash."""
    pixels = pictures.fitted(picture, size_px).permute(1, 2, 0).contiguous().numpy()
    return _as_png(pixels, name)


def mask(choice: str, painted: bytes | None, size_px: tuple[int, int], limits: Limits) -> tuple[Picture, bytes]:
    """The mask of a picture of this height and width, and its PNG: one of `masks.NAMES`, or the layer that was
    painted, white or transparent. ConfigError: nothing was painted, or on a picture of another shape."""
    is_white = masks.named(choice, *size_px) if choice in masks.NAMES else _is_painted(painted, size_px, limits)
    return _as_png(np.repeat(np.where(is_white, 255, 0).astype(np.uint8)[..., None], 3, 2), "mask")


def mask_name(mask: Picture) -> str | None:
    """The name of a mask; None = it was painted."""
    is_white, size_px = mask.pixels[..., 0] > 0, mask.pixels.shape[:2]
    return next((name for name in masks.NAMES if np.array_equal(masks.named(name, *size_px), is_white)), None)


def _is_painted(layer: bytes | None, size_px: tuple[int, int], limits: Limits) -> Bool[np.ndarray, "h w"]:
    try:
        # Brush strokes are white, and all else of their layer is transparent.
        strokes = None if layer is None else _decoded(layer, "mask", limits, background="#000000")
    except ConfigError as error:
        if not (isinstance(error.__cause__, Rejected) and error.__cause__.reason == "TRANSPARENT"):
            raise
        strokes = None
    if strokes is None:
        fix = f"paint on the picture, or choose a mask: {', '.join(masks.NAMES)}"
        raise ConfigError("mask", "nothing is painted", "white where to draw", fix)
    (height, width), (wanted_height, wanted_width) = strokes.pixels.shape[:2], size_px
    if height * wanted_width != width * wanted_height:  # the middle of it would lie elsewhere than it was painted
        found, expected = f"painted on {height} x {width} pixels", f"the shape of {wanted_height} x {wanted_width}"
        raise ConfigError("mask", found, expected, "paint it anew, after the size is chosen")
    return pictures.white(strokes, size_px)[0].numpy()


def magnified(picture: Picture, size_px: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """What the model sees of a picture, large enough to be painted on: each pixel a square."""
    pixels = pictures.fitted(picture, size_px).permute(1, 2, 0).numpy()
    factor = max(1, -(-_EASEL_PX // max(size_px)))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _decoded(data: bytes, name: str, limits: Limits, **params: str) -> Picture:
    allowed = {"max_bytes": limits.upload_bytes, "max_pixels": limits.upload_pixels}
    return pictures.decoded(data, name, **allowed, **params)


def _as_png(pixels: UInt8[np.ndarray, "h w 3"], name: str) -> tuple[Picture, bytes]:
    data = images.encode_png(pixels)
    return Picture(pixels, hashlib.sha256(data).hexdigest(), name), data
