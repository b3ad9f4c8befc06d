"""Cleaning of a user's images: raw bytes -> square RGB image, or the reason for a rejection.

Conversions, all silent: EXIF orientation is applied; greyscale, palette, bilevel and CMYK become RGB; colour profiles
are ignored; transparent images are laid on the configured background; 16-bit greyscale is scaled if the params say so.
"""

import io
import os
import struct
import warnings
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from ldm.corpora import framing
from ldm.corpora.files import Files
from ldm.corpora.pairs import Rejected
from ldm.corpora.pixels_params import PixelParams

SUFFIXES = ("jpg", "jpeg", "png", "webp", "avif", "gif", "tif", "tiff", "bmp", "heic", "heif", "jxl")
# Untrusted bytes meet few parsers. Pillow looks at the content, not at the file name.
_FORMATS = ("JPEG", "PNG", "WEBP")
# What Pillow's parsers raise for randomly mutated files, for instance for metadata of the wrong type.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError),
    *(LookupError, ArithmeticError, struct.error, zlib.error),
)


def read(path: str, offset: int, size: int, params: PixelParams) -> bytes:
    """`size` bytes of a file, from byte `offset` on.

    Raises:
        Rejected: TOO_MANY_BYTES, UNREADABLE.
    """
    if size > params.max_bytes:
        raise Rejected("TOO_MANY_BYTES", f"{size} bytes")
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)
    except OSError as error:
        raise Rejected("UNREADABLE", str(error.strerror)) from None


def read_and_clean(path: str, offset: int, size: int, params: PixelParams, size_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """`clean` of some bytes of a file; picklable arguments, so that a worker process can do the reading."""
    return clean(read(path, offset, size, params), params, size_px)


def read_image(
    files: Files, name: str, offset: int, size: int, params: PixelParams, size_px: int
) -> UInt8[np.ndarray, "h w 3"]:
    """`clean` of some bytes of a file of a corpus."""
    if size > params.max_bytes:
        raise Rejected("TOO_MANY_BYTES", f"{size} bytes")
    return clean(files.read(name, offset, size), params, size_px)


def clean(data: bytes, params: PixelParams, size_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image that a JPEG, PNG or WebP file becomes: a square of `size_px` pixels, or one of the buckets that have
    about as many. Rejected: as in `whole`."""
    return framing.framed(whole(data, params), params.framing, params.resampling, size_px, data)


def whole(data: bytes, params: PixelParams) -> UInt8[np.ndarray, "h w 3"]:
    """A JPEG, PNG or WebP file, upright and in RGB.

    Raises:
        Rejected: NOT_IMAGE, BROKEN, ANIMATED, TOO_MANY_PIXELS, TOO_SMALL, TOO_NARROW, MODE, MODE_16BIT, TRANSPARENT.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_header(image, params)
                image.load()
                upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise Rejected("NOT_IMAGE", f"first bytes {data[:8].hex() or 'none'}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Rejected("TOO_MANY_PIXELS", str(error)) from None
    except _DECODER_ERRORS as error:
        raise Rejected("BROKEN", f"{type(error).__name__}: {error}") from None
    return np.asarray(_to_rgb(upright, params))


def _check_header(image: Image.Image, params: PixelParams) -> None:
    short, long = sorted(image.size)
    shape = f"{image.width} x {image.height} px"
    if short * long > params.max_pixels:
        raise Rejected("TOO_MANY_PIXELS", shape)
    if short < params.min_side_px:
        raise Rejected("TOO_SMALL", shape)
    if long > short * params.max_aspect_ratio:
        raise Rejected("TOO_NARROW", shape)
    # A phone's JPEG may carry a preview as a second frame; that is not an animation.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise Rejected("ANIMATED", f"{getattr(image, 'n_frames', 0)} frames")


def _to_rgb(image: Image.Image, params: PixelParams) -> Image.Image:
    if image.mode.startswith("I;16"):
        if params.deep_greyscale == "reject":
            raise Rejected("MODE_16BIT", image.mode)
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Rejected("MODE", image.mode)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (0, 0):
        raise Rejected("TRANSPARENT", "every pixel is transparent")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, params.background), rgba).convert("RGB")
