"""What files of images say about themselves, read before any decoder runs: format, size, frames, what makes pixels.

Decoders give up a whole image for a fault in its metadata, or accept one of which half is missing. Here a file is
brought into a form that says no more and no less than its pixels.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ldm.corpora.pairs import Rejected

SUFFIXES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "gif", "tif", "tiff", "bmp"),
    *("heic", "heif", "hif", "jxl"),
)
"""File names of images end in one of these, in any case."""
_MAGIC = (
    (rb"\xff\xd8\xff", "jpeg"),
    (rb"\x89PNG\r\n\x1a\n", "png"),
    (rb"RIFF....WEBP", "webp"),
    (rb"GIF8[79]a", "gif"),
    (rb"II[*+]\0|MM\0[*+]", "tiff"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "bmp"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (rb"....ftyp(avif|avis)", "avif"),
    (rb"....ftyp(hei[cxms]|hev[cxms])", "heic"),
    # "mif1" and "msf1" are images of any codec; one of the brands that follow names it.
    (rb"....ftyp(mif1|msf1).{0,40}?avi[fs]", "avif"),
    (rb"....ftyp(mif1|msf1)", "heic"),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"....ftyp", "a film (MP4)"),
    (rb"\x1aE\xdf\xa3", "a film (Matroska)"),
    (rb"8BPS", "Photoshop"),
    (rb"%PDF", "PDF"),
    (rb"\x00\x00\x01\x00", "an icon (ICO)"),
    (rb"PK\x03\x04", "a zip"),
    (rb"\x1f\x8b", "gzip"),
    (rb"(?i)\s*(<\?xml.{0,200}?)?<svg", "SVG"),
    (rb"(?i)\s*<(!doctype )?html", "HTML"),
    (rb"version https://git-lfs", "a pointer of Git LFS"),
)
_NAMES = tuple((re.compile(magic, re.DOTALL), name) for magic, name in _MAGIC)
_PNG = b"\x89PNG\r\n\x1a\n"
_PALETTE = b"\x03"
_MAX_PROFILE_BYTES = 2**24
_END_OF_JPEG = b"\xff\xd9"
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""The next marker of a JPEG: not 0xff00, a byte of compressed data, and not one that restarts the decoder."""
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
"""Headers of frames with several scans of each component."""
_RESTARTS = [bytes([0xFF, 0xD0 + i]) for i in range(8)]
_OTHER_ENDS = [
    b"".join(bits + restart for restart in [b"", *_RESTARTS])
    for bits in (b"\x5a\xa5" * 32, b"\xc7\x1e\xb3" * 20, b"\x93\x6d\x2b" * 20)
]
"""Bits, and where a JPEG is compressed in intervals, intervals: what a decoder takes for pixels that are missing."""
_JXL_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def format_of(data: bytes) -> str | None:
    """The format of a file by its first bytes: one that `pixels` may decode, or the name of another; None = unknown."""
    head = data[:300]
    return next((name for magic, name in _NAMES if magic.match(head)), None)


@dataclass(frozen=True)
class Png:
    """A PNG without the chunks that make no pixels."""

    data: bytes
    """Checksums of what is left have yet to be compared. EXIF is left if it is whole."""
    bits: int
    """Per value."""
    colour: int
    """0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha."""
    transparent: tuple[int, ...] | None
    """The one colour, grey or red, green and blue, that is transparent, in values of `bits`. Palettes keep theirs."""
    profile: bytes | None
    """ICC profile."""
    num_frames: int


def png(data: bytes) -> Png:
    """Take a PNG apart. One without an end gets one. Rejected: BROKEN, a chunk that makes pixels is cut or damaged."""
    found: dict[bytes, bytes] = {}
    kept: list[bytes] = []
    for kind, body in _chunks(data):
        found.setdefault(kind, body)
        is_colour = kind == b"tRNS" and found[b"IHDR"][9:10] == _PALETTE
        if kind.isupper() or kind == b"eXIf" or is_colour:
            kept.append(_chunk(kind, body))
    header = found.get(b"IHDR", b"")
    if len(header) != 13:
        raise Rejected("BROKEN", "png: no header")
    bits, colour = header[8], header[9:10]
    return Png(
        data=b"".join([_PNG, *kept, _chunk(b"IEND", b"")]),
        bits=bits,
        colour=header[9],
        transparent=None if colour == _PALETTE else _values(found.get(b"tRNS", b""), bits),
        profile=_inflated(found.get(b"iCCP", b"")),
        num_frames=int.from_bytes(found.get(b"acTL", b"\0\0\0\1")[:4]),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of every chunk before the end. Damaged ones that make no pixels are left out."""
    at = len(_PNG)
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        if kind == b"IEND":
            return
        if zlib.crc32(kind + body) == int.from_bytes(data[at + 8 + size : at + 12 + size]):
            yield kind, body
        elif kind[:1].isupper() or kind == b"tRNS":
            raise Rejected("BROKEN", f"png: the part {kind!r} at byte {at} is cut or damaged")
        at += 12 + size


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _values(body: bytes, bits: int) -> tuple[int, ...] | None:
    """The values of tRNS: each takes two bytes, of which only the lowest `bits` count."""
    values = struct.unpack(f">{len(body) // 2}H", body[: len(body) // 2 * 2])
    return tuple(value & (1 << bits) - 1 for value in values) or None


def _inflated(body: bytes) -> bytes | None:
    """The profile in iCCP: a name, a zero byte, the method, and compressed data; if that is damaged, as it is."""
    try:
        return zlib.decompressobj().decompress(body.partition(b"\0")[2][1:], _MAX_PROFILE_BYTES) or None
    except zlib.error:
        return body


def jpeg_endings(data: bytes) -> tuple[bytes, ...]:
    """The JPEG itself, or several with different ends if its end marker is missing: they decode to equal pixels only if
    nothing but the marker is missing, since a decoder takes what is missing from the bytes that follow.

    Rejected: BROKEN, whole scans are missing.
    """
    has_end, has_all_scans = _scans(data)
    if not has_all_scans:
        raise Rejected("BROKEN", f"jpeg: its {'last scan' if has_end else 'end'} is missing, and so are pixels")
    if has_end:
        return (data,)
    # Many zeros at the end were never written; one may be data. A last 0xff is half of something.
    start = data.rstrip(b"\0") + b"\0" if data.endswith(bytes(64)) else data.rstrip(b"\xff")
    return tuple(start + end + _END_OF_JPEG for end in (b"", *_OTHER_ENDS))


def jpeg_other_endings(data: bytes) -> tuple[bytes, ...]:
    """A JPEG that has its end marker, with several other ends before it: it decodes to equal pixels unless it was cut,
    and then given an end."""
    start = data.removesuffix(_END_OF_JPEG).rstrip(b"\xff")
    return tuple(start + end + _END_OF_JPEG for end in _OTHER_ENDS)


def _scans(data: bytes) -> tuple[bool, bool]:
    """Whether a JPEG has its end marker, and whether its scans bring every coefficient of every component down to the
    lowest bit (ITU-T T.81, B.2.2, B.2.3): a progressive JPEG has many scans, and each alone makes a picture."""
    has_end = data.endswith(_END_OF_JPEG)
    missing: set[tuple[int, int]] = set()
    at = 2
    while (marker := _MARKER.search(data, at)) is not None:
        code, at = marker[1][0], marker.end()
        if code == 0xD9:
            return True, not missing
        size = int.from_bytes(data[at : at + 2])
        body = data[at + 2 : at + size]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            if has_end and code not in _PROGRESSIVE:
                return True, True
            missing = {(component, k) for component in body[6::3] for k in range(64)}
        elif code == 0xDA and len(body) >= 4 and body[-1] & 15 == 0:
            missing -= {(component, k) for component in body[1:-3:2] for k in range(body[-3], body[-2] + 1)}
        at += size
    return has_end, at > 2 and not missing


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a JPEG XL (ISO/IEC 18181-1, SizeHeader and ImageMetadata): the decoder has no
    look at it before it decodes, and of an animation it decodes the first frame without a word.

    Rejected: BROKEN, ANIMATED.
    """
    stream = _jxl_stream(data)
    bits = _Bits(int.from_bytes(stream[2:66], "little"))
    if len(stream) < 12:
        raise Rejected("BROKEN", "jxl: no header")
    is_small = bits.take(1)
    height = _jxl_side(bits, is_small)
    above, below = _JXL_RATIOS[bits.take(3)]
    width = height * above // below or _jxl_side(bits, is_small)
    is_default = bits.take(1)
    has_more = not is_default and bits.take(1)
    if has_more:
        bits.take(3)  # orientation
        if bits.take(1):  # another size to be shown at
            inner = bits.take(1)
            _jxl_side(bits, inner)
            if not bits.take(3):
                _jxl_side(bits, inner)
        has_preview, has_frames = bits.take(1), bits.take(1)
        if has_preview or has_frames:
            raise Rejected("ANIMATED", "a preview or several frames")
    return width, height


def _jxl_side(bits: "_Bits", is_small: int) -> int:
    return (bits.take(5) + 1) * 8 if is_small else bits.take((9, 13, 18, 30)[bits.take(2)]) + 1


def _jxl_stream(data: bytes) -> bytes:
    """The first part of the codestream, which may lie in a box."""
    at = 0
    while not data.startswith(b"\xff\x0a", at):
        if at + 8 > len(data):
            raise Rejected("BROKEN", "jxl: no picture in it")
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 16 if size == 1 else 8
        if kind in (b"jxlc", b"jxlp"):
            at += head + 4 * (kind == b"jxlp")
            return data[at : at + 66]
        at += max(head, int.from_bytes(data[at + 8 : at + 16]) if size == 1 else size or len(data))
    return data[at : at + 66]


class _Bits:
    """Bits of a number, the lowest first."""

    def __init__(self, number: int) -> None:
        self._number = number

    def take(self, count: int) -> int:
        value = self._number & (1 << count) - 1
        self._number >>= count
        return value
