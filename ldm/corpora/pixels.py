"""Bytes of a user's image -> upright RGB pixels of a square or bucket, or the reason for a rejection.

Conversions, each counted in the report: colours of an ICC profile are brought to sRGB by LittleCMS; CMYK, greyscale,
palettes and bilevel become RGB; 16 bits become 8; transparent images are laid on the configured background; the
orientation in EXIF is applied. A fault in metadata costs no image. Pixels are those of libvips, within rounding.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from typing import get_args

import numpy as np
from jaxtyping import UInt16
from PIL import AvifImagePlugin, Image, ImageChops, ImageCms, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ldm.core.errors import MachineError
from ldm.core.params import Size
from ldm.corpora import containers, framing
from ldm.corpora.files import Files
from ldm.corpora.pairs import Picture, Rejected, size_notes
from ldm.corpora.pixels_params import Format, PixelParams

SUFFIXES = containers.SUFFIXES
_EXTRAS = {"heic": ("pillow_heif", "heif"), "jxl": ("pillow_jxl", "jxl")}
"""Formats that need a package of their own, and the extra of ours that brings it."""
# What the parsers raise for randomly mutated files, for instance for metadata of the wrong type.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, RuntimeError, MemoryError, AttributeError),
    *(LookupError, ArithmeticError, struct.error, zlib.error, Image.DecompressionBombError),
)
_ORIENTATION, _SUBFILE, _BITS, _PHOTOMETRIC = 0x0112, 254, 258, 262
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ENOUGH = {"area": 8, "lanczos": 2}
"""A JPEG may be decoded at a half, a fourth or an eighth if that is this many times the target: the difference of the
resized images is then a fraction of a level. Pillow's mean over an area takes whole pixels, so it needs more."""
_SRGB_LEVELS = 2
"""A profile whose colours are everywhere this close to sRGB is taken for sRGB."""
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # work is spread by processes


def require(params: PixelParams) -> None:
    """Refuse formats that need a package which is not there. MachineError."""
    for name in params.formats:
        package, extra = _EXTRAS.get(name, ("PIL", ""))
        if find_spec(package) is None:
            fix = f"pip install 'ldm[{extra}]', or take {name} out of the formats"
            raise MachineError("prepare.corpus", f"the format {name}, and no package {package}", "that package", fix)


def read(files: Files, name: str, offset: int, size: int, params: PixelParams, size_px: int) -> Picture:
    """`clean` of some bytes of a file; picklable arguments, so that a worker process can do the reading.

    Raises:
        Rejected: TOO_MANY_BYTES, UNREADABLE, and as in `whole`.
    """
    if size > params.max_bytes:
        raise Rejected("TOO_MANY_BYTES", f"{size} bytes")
    return clean(files.read(name, offset, size), params, size_px)


def clean(data: bytes, params: PixelParams, size_px: int) -> Picture:
    """The image that a file becomes: a square of `size_px` pixels, or one of the buckets that have about as many.
    Rejected: as in `whole`."""
    picture = whole(data, params, params.framing.sizes_px(size_px))
    pixels = framing.framed(picture.pixels, params.framing, params.resampling, size_px, data)
    return replace(picture, pixels=pixels)


def whole(data: bytes, params: PixelParams, sizes_px: Sequence[Size] = ()) -> Picture:
    """An image, upright and in RGB. A JPEG comes smaller, if that is enough for the one of `sizes_px`, height and
    width, whose shape is nearest.

    Raises:
        Rejected: NOT_IMAGE, FORMAT (not one of the params), BROKEN, ANIMATED, TOO_MANY_PIXELS, TOO_SMALL, TOO_NARROW,
            MODE, MODE_16BIT, TRANSPARENT.
    """
    kind = _format(data, params)
    try:
        with warnings.catch_warnings(action="ignore"):
            match kind:
                case "png":
                    return _png(data, params)
                case "jpeg":
                    return _jpeg(data, params, sizes_px)
                case _:
                    return _other(data, kind, params)
    except _DECODER_ERRORS as error:
        if str(error) == "unknown pixel mode":
            raise Rejected("MODE", f"{kind} of a kind that is not read, such as numbers with a point") from None
        raise Rejected("BROKEN", f"{kind}: {type(error).__name__}: {error}") from None


def _format(data: bytes, params: PixelParams) -> Format:
    name = containers.format_of(data)
    if name in params.formats:
        return name
    if name in get_args(Format):
        raise Rejected("FORMAT", f"{name}, and the params allow {', '.join(params.formats)}")
    raise Rejected("NOT_IMAGE", f"{name or 'unknown'}, first bytes {data[:8].hex()}" if data else "an empty file")


def _checked(size: tuple[int, int], params: PixelParams) -> tuple[str, str]:
    """The notes of a size, if the params allow it."""
    short, long = sorted(size)
    shape = f"{size[0]} x {size[1]} px"
    if short * long > params.max_pixels:
        raise Rejected("TOO_MANY_PIXELS", shape)
    if short < params.min_side_px:
        raise Rejected("TOO_SMALL", shape)
    if long > short * params.max_aspect_ratio:
        raise Rejected("TOO_NARROW", shape)
    return size_notes(*size)


def _check_frames(count: int) -> None:
    if count > 1:
        raise Rejected("ANIMATED", f"{count} frames")


def _png(data: bytes, params: PixelParams) -> Picture:
    png = containers.png(data)
    _check_frames(png.num_frames)
    with PngImageFile(io.BytesIO(png.data)) as image:
        sizes = _checked(image.size, params)
        if png.bits == 16 and png.colour in (0, 4) and params.deep_greyscale == "reject":
            raise Rejected("MODE_16BIT", "16-bit greyscale")
        notes = ["png", *sizes, *(["deep"] if png.bits == 16 and image.mode != "I;16" else [])]
        if png.transparent is None:
            return _finished(image, png.profile, notes, params)
        opaque = np.any(_values(image, png) != png.transparent, axis=2)
        return _finished(image, png.profile, notes, params, Image.fromarray(opaque.astype(np.uint8) * 255))


def _values(image: Image.Image, png: containers.Png) -> UInt16[np.ndarray, "h w c"]:
    """Values of a PNG as they stand in it: Pillow scales 2 and 4 bits to 8, and takes the high byte of 16."""
    values = np.asarray(image if image.mode == "I;16" else image.convert("L" if png.colour == 0 else "RGB"))
    values = np.atleast_3d(values).astype(np.uint16)
    if png.bits < 8:
        return values // (255 // (2**png.bits - 1))
    if png.bits == 16 and png.colour == 2:
        with PngImageFile(io.BytesIO(png.data)) as low:
            # Read as if the low byte came last, which makes it the high one.
            low.tile = [low.tile[0]._replace(args="RGB;16L")]
            return values * 256 + np.asarray(low)
    return values


def _jpeg(data: bytes, params: PixelParams, sizes_px: Sequence[Size]) -> Picture:
    first, *others = containers.jpeg_endings(data)
    picture, is_grey = _jpeg_as_it_is(first, params, sizes_px)
    for version in others or (containers.jpeg_other_endings(data) if is_grey else ()):
        if not np.array_equal(picture.pixels, _jpeg_as_it_is(version, params, sizes_px)[0].pixels):
            raise Rejected("BROKEN", "jpeg: its end is missing, and so are pixels")
    return picture


def _jpeg_as_it_is(data: bytes, params: PixelParams, sizes_px: Sequence[Size]) -> tuple[Picture, bool]:
    """The picture, and whether it ends in the middle grey that decoders take for what is missing."""
    with JpegImageFile(io.BytesIO(data)) as image:
        sizes = _checked(image.size, params)
        turn = _orientation(image)
        enough = _enough(image.size, turn, params, sizes_px)
        _, exact = (enough and image.draft(None, enough)) or ("", (0, 0, *image.size))
        image.load()
        last = np.asarray(image.crop((image.width - 1, image.height - 1, *image.size)), int)
        is_grey = bool(np.abs(last - 128).max() <= 1)
        # The last row and column of a smaller picture may stand for less than a pixel, which would shift the centre.
        size = round(exact[2]), round(exact[3])
        whole = image if exact[2:] == image.size else image.resize(size, Image.Resampling.LANCZOS, box=exact)
        return _finished(whole, image.info.get("icc_profile"), ["jpeg", *sizes], params, turn=turn), is_grey


def _enough(size: tuple[int, int], turn: int, params: PixelParams, sizes_px: Sequence[Size]) -> tuple[int, int] | None:
    """Width and height of a JPEG, as it lies in its file, that are enough for the nearest of the sizes."""
    if not sizes_px:
        return None
    is_lying = turn in (5, 6, 7, 8)
    width, height = size[::-1] if is_lying else size
    height, width = (ENOUGH[params.resampling] * side for side in framing.nearest((height, width), sizes_px))
    return (height, width) if is_lying else (width, height)


def _other(data: bytes, kind: Format, params: PixelParams) -> Picture:
    if kind == "jxl":
        _checked(containers.jxl_size(data), params)
    with _opened(data, kind) as image:
        sizes = _checked(image.size, params)
        if kind != "heic":  # a phone's picture may carry others; the first is the one it shows
            _check_frames(getattr(image, "n_frames", 1))
        if isinstance(image, TiffImageFile) and int(image.tag_v2.get(_SUBFILE, 0)) & 1:
            raise Rejected("FORMAT", "tiff that begins with a thumbnail, such as a camera's raw file")
        # A JPEG XL is decoded upright, unless it is a JPEG in another coat.
        turn = 1 if kind == "jxl" and not getattr(image, "jpeg", False) else None
        return _finished(image, image.info.get("icc_profile"), [kind, *sizes], params, _frame(image), turn)


def _frame(image: ImageFile.ImageFile) -> Image.Image | None:
    """Where a GIF has pixels, if its frame is smaller than its canvas: the rest is transparent, as browsers have it."""
    box = image.tile[0].extents if isinstance(image, GifImageFile) and image.tile else None
    if box is None or box == (0, 0, *image.size):
        return None
    opaque = Image.new("L", image.size, 0)
    opaque.paste(255, box)
    return opaque


def _opened(data: bytes, kind: Format) -> ImageFile.ImageFile:
    stream = io.BytesIO(data)
    match kind:
        case "webp":
            return WebPImageFile(stream)
        case "avif":
            return AvifImagePlugin.AvifImageFile(stream)
        case "gif":
            return GifImageFile(stream)
        case "tiff":
            return TiffImageFile(stream)
        case "heic":
            from pillow_heif import HeifImageFile

            return HeifImageFile(stream)
        case "jxl":
            from pillow_jxl.JpegXLImagePlugin import JXLImageFile

            return JXLImageFile(stream)
        case _:
            return BmpImageFile(stream)


def _finished(
    image: Image.Image,
    profile: bytes | None,
    notes: list[str],
    params: PixelParams,
    opaque: Image.Image | None = None,
    turn: int | None = None,
) -> Picture:
    """Pixels in RGB, sRGB, opaque and upright.

    Args:
        image: as its decoder offers it, loaded or not.
        profile: ICC profile.
        notes: what is known already, for the report.
        opaque: 0 where a pixel is transparent, besides those of which the image says so itself.
        turn: orientation as in EXIF; None = the one in the image's EXIF.
    """
    image.load()
    turn = _orientation(image) if turn is None else turn
    image, is_deep = _eight_bits(image, params)
    image, alpha = _colours(image)
    alpha = ImageChops.darker(opaque, alpha) if opaque and alpha else opaque or alpha
    if alpha is not None and alpha.getextrema() == (0, 0):
        raise Rejected("TRANSPARENT", "every pixel is transparent")
    upright, profile_note = _srgb(image, profile)
    if alpha is not None:
        upright = _laid_on(params.background, upright, alpha)
    if turn in _TURNS:
        upright = upright.transpose(_TURNS[turn])
    found = {"deep": is_deep, "cmyk": image.mode == "CMYK", "transparent": alpha is not None, "turned": turn in _TURNS}
    notes = [*notes, *(name for name, is_so in found.items() if is_so), *([profile_note] if profile_note else [])]
    return Picture(np.asarray(upright), tuple(dict.fromkeys(notes)))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DECODER_ERRORS:
        return 1


def _eight_bits(image: Image.Image, params: PixelParams) -> tuple[Image.Image, bool]:
    if not image.mode.startswith("I;16"):
        return image, False
    if params.deep_greyscale == "reject":
        raise Rejected("MODE_16BIT", "16-bit greyscale")
    white, is_negative = 65535, False
    if isinstance(image, TiffImageFile):
        # Of these Pillow gives the numbers as they stand in the file: of 12 bits, and with 0 for white (TIFF 6.0).
        white, is_negative = 2 ** image.tag_v2.get(_BITS, (16,))[0] - 1, image.tag_v2.get(_PHOTOMETRIC) == 0
    values = np.minimum(np.asarray(image) / white, 1)
    return Image.fromarray(np.round(255 * (1 - values if is_negative else values)).astype(np.uint8)), True


def _colours(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """An image in mode L, RGB or CMYK, as profiles expect it, and how opaque it is."""
    if image.mode in ("I", "F", "LAB"):
        raise Rejected("MODE", image.mode)
    is_grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        return image if image.mode == "CMYK" else image.convert("L" if is_grey else "RGB"), None
    both = image.convert("LA" if is_grey else "RGBA")
    return both.convert("L" if is_grey else "RGB"), both.getchannel("A")


def _srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    if not profile:
        return image.convert("RGB"), ""
    try:
        transform = _transform(profile, image.mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        # Damaged, or made for other colours than the image has.
        return image.convert("RGB"), "icc_unreadable"
    return (image.convert("RGB"), "") if transform is None else (transform.apply(image), "icc_profile")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB, by the relative colorimetric intent; None if that would change next to nothing."""
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    transform = ImageCms.ImageCmsTransform(
        source, ImageCms.ImageCmsProfile(target), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
    )
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    samples = Image.fromarray(cube if mode == "RGB" else cube[..., 0])
    change = np.asarray(transform.apply(samples)).astype(int) - np.asarray(samples.convert("RGB"))
    return transform if np.abs(change).max() > _SRGB_LEVELS else None


def _laid_on(background: str, image: Image.Image, alpha: Image.Image) -> Image.Image:
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
