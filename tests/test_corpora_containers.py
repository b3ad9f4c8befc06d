"""Formats and faults of image files, as public bug reports have them, and every cut of small files."""

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (registers JPEG XL with Pillow)
import pytest
from PIL import Image

from ldm.corpora import containers, pixels
from ldm.corpora.pairs import Rejected
from tests.corpora import PIXELS

pillow_heif.register_heif_opener()
NOISE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(24), np.arange(24))[..., None].astype(np.uint8) * np.array([5, 3, 2], np.uint8)


def saved(pixel: np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixel).save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return pixels.whole(data, PIXELS).pixels


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum or zlib.crc32(kind + body))


def with_chunk(png: bytes, *chunks: bytes) -> bytes:
    """Chunks put before the pixels of a PNG."""
    at = png.index(b"IDAT") - 4
    return png[:at] + b"".join(chunks) + png[at:]


KINDS = {
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "avif": "AVIF",
    "gif": "GIF",
    "tiff": "TIFF",
    "bmp": "BMP",
    "heic": "HEIF",
    "jxl": "JXL",
}


@pytest.mark.parametrize("name", KINDS)
def test_every_format_is_told_by_content_decoded_if_allowed_and_else_named(name):
    data = saved(SMOOTH, KINDS[name])
    assert containers.format_of(data) == name
    picture = pixels.whole(data, PIXELS)
    assert picture.notes[0] == name and np.abs(picture.pixels.astype(int) - SMOOTH).mean() < 6
    others = [other for other in KINDS if other != name]
    with pytest.raises(Rejected, match=f"FORMAT.*{name}, and the params allow"):
        pixels.whole(data, PIXELS.model_copy(update={"formats": others}))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"  <?xml version='1.0'?><svg>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "MP4"),
        (b"BMW is a brand of cars", "unknown"),
        (b"", "an empty file"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(data, name):
    with pytest.raises(Rejected, match=f"NOT_IMAGE.*{name}"):
        decoded(data)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_several_frames_are_no_still_image(kind):
    data = saved(NOISE, kind, save_all=True, append_images=[Image.fromarray(SMOOTH)])
    with pytest.raises(Rejected, match=r"ANIMATED.*2 frames"):
        decoded(data)


def test_a_thumbnail_that_begins_a_tiff_is_not_taken_for_the_picture():
    with pytest.raises(Rejected, match=r"FORMAT.*thumbnail"):
        decoded(saved(NOISE, "TIFF", tiffinfo={254: 1}))


# Metadata costs no picture


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"pHYs", bytes(9), checksum=1),
        chunk(b"tEXt", b"Comment\0hello", checksum=1),
        chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iTXt", b"\xff" * 40),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iCCP", b"name\0\0" + b"\xff" * 30),
        chunk(b"eXIf", b"MM\0*" + b"\xff" * 20),
        chunk(b"eXIf", b""),
    ],
    ids=lambda value: value[4:8].decode(),
)
def test_odd_metadata_of_a_png_costs_no_pixel(extra):
    assert np.array_equal(decoded(with_chunk(saved(NOISE, "PNG"), extra)), NOISE)


def test_odd_exif_of_a_jpeg_costs_no_pixel():
    data = saved(NOISE, "JPEG")
    odd = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40
    mended = data[:2] + b"\xff\xe1" + struct.pack(">H", len(odd) + 2) + odd + data[2:]
    assert np.array_equal(decoded(mended), decoded(data))


# Ends


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"subsampling": 0}], ids=str
)
def test_a_jpeg_cut_anywhere_is_whole_or_broken(options):
    data = saved(NOISE, "JPEG", **options)
    expected, accepted = decoded(data), []
    for length in range(200, len(data)):
        try:
            assert np.array_equal(decoded(data[:length]), expected)
            accepted.append(length)
        except Rejected as error:
            assert error.reason == "BROKEN"
    assert len(data) - 2 in accepted, "only the end marker is missing"


def test_a_png_cut_anywhere_is_whole_or_broken():
    data = saved(NOISE, "PNG")
    accepted = []
    for length in range(8, len(data)):
        try:
            assert np.array_equal(decoded(data[:length]), NOISE)
            accepted.append(length)
        except Rejected as error:
            assert error.reason == "BROKEN"
    assert accepted == list(range(len(data) - 12, len(data))), "all but the end"


def test_other_ends_of_a_jpeg():
    data = saved(SMOOTH, "JPEG")
    expected = decoded(data)
    trailer = b"SEFH" + bytes(range(60))
    scan = data.index(b"\xff\xda")
    for changed in (data[:-2] + trailer, data + bytes(300), data + trailer, data[:scan] + b"junk" + data[scan:]):
        assert np.array_equal(decoded(changed), expected)
    for cut in (data[: len(data) * 7 // 10], data[: len(data) * 7 // 10] + bytes(4096)):
        with pytest.raises(Rejected, match=r"BROKEN.*end is missing"):
            decoded(cut)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"quality": 95}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_was_cut_and_given_an_end_is_broken(options, mode):
    """As tools that recover files leave it: the rest would be grey."""
    stream = io.BytesIO()
    Image.fromarray(SMOOTH).convert(mode).save(stream, "JPEG", **options)
    data = stream.getvalue()
    for share in (30, 60, 90):
        cut = data[: len(data) * share // 100] + b"\xff\xd9"
        with pytest.raises(Rejected, match="BROKEN"):
            decoded(cut)


def test_a_jpeg_that_ends_in_grey_is_whole():
    pixels_of = np.concatenate([SMOOTH, np.full_like(SMOOTH, 128)])
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}):
        found = decoded(saved(pixels_of, "JPEG", **options))
        assert found.shape == pixels_of.shape and np.abs(found[-8:].astype(int) - 128).max() <= 1


def test_a_flipped_bit_of_a_png_is_told_by_its_checksum():
    data = saved(NOISE, "PNG")
    for at in range(data.index(b"IDAT"), data.index(b"IEND") - 4, 97):
        changed = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        with pytest.raises(Rejected, match="BROKEN"):
            decoded(changed)


# JPEG XL


@pytest.mark.parametrize("size", [(8, 8), (9, 40), (40, 9), (256, 256), (40, 20), (33, 300), (513, 8)])
def test_the_size_of_a_jpeg_xl_is_read_before_it_is_decoded(size):
    data = saved(np.zeros((size[1], size[0], 3), np.uint8), "JXL", effort=1)
    assert containers.jxl_size(data) == size
    box = struct.pack(">I", len(data) + 8) + b"jxlc" + data
    assert containers.jxl_size(b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl " + box) == size
    if size[0] * size[1] > 2000:
        with pytest.raises(Rejected, match="TOO_MANY_PIXELS"):
            pixels.whole(data, PIXELS.model_copy(update={"max_pixels": 2000}))


def test_an_animated_jpeg_xl_is_told_by_its_header():
    # Bits from the lowest: small, height 8, ratio 1:1, not all default, more fields, orientation, neither size nor
    # preview, frames.
    bits = "1" + "00000" + "100" + "0" + "1" + "000" + "0" + "0" + "1"
    head = int(bits[::-1], 2).to_bytes(10, "little")
    with pytest.raises(Rejected, match="ANIMATED"):
        decoded(b"\xff\x0a" + head)
    with pytest.raises(Rejected, match="BROKEN"):
        decoded(b"\xff\x0a")
    with pytest.raises(Rejected, match="BROKEN"):
        decoded(b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\0free")
