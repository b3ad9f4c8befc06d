import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm.corpora.cleaning import clean, read
from ldm.corpora.pairs import Rejected
from ldm.corpora.pixels_params import PixelParams
from tests.corpora import PIXELS


def _file(image: Image.Image, suffix: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return stream.getvalue()


def _noise(width: int = 40, height: int = 40, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _reason(data: bytes, **changes) -> str:
    with pytest.raises(Rejected) as caught:
        clean(data, PIXELS.model_copy(update=changes), 16)
    assert caught.value.detail
    return caught.value.reason


# What is accepted, and as which pixels


def test_area_resize_is_the_mean_over_the_centre_square():
    array = _noise(60, 40)
    got = clean(_file(Image.fromarray(array)), PIXELS, 20)
    expected = array[:, 10:50].reshape(20, 2, 20, 2, 3).mean((1, 3))
    assert got.shape == (20, 20, 3) and got.dtype == np.uint8
    assert np.abs(got - expected).max() <= 1, "rounded once for rows and once for columns"


def test_an_image_of_the_right_size_is_not_changed():
    array = _noise()
    for resampling in ("area", "lanczos"):
        params = PIXELS.model_copy(update={"resampling": resampling})
        assert np.array_equal(clean(_file(Image.fromarray(array)), params, 40), array)
    portrait = _noise(40, 60)
    assert np.array_equal(clean(_file(Image.fromarray(portrait)), PIXELS, 40), portrait[10:50])


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP"])
def test_formats_are_told_by_content(suffix):
    got = clean(_file(Image.new("RGB", (40, 40), (200, 60, 30)), suffix, quality=95), PIXELS, 16)
    assert np.abs(got.astype(int) - (200, 60, 30)).max() <= 4


def test_exif_orientation_is_applied():
    array = np.zeros((40, 40, 3), np.uint8)
    array[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: the top becomes the right
    got = clean(_file(Image.fromarray(array), exif=exif), PIXELS, 40)
    assert (got[:, :20] == 0).all() and (got[:, 20:] == 255).all()


def test_transparency_is_laid_on_the_background_not_dropped():
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[:, :, 0] = 255
    rgba[:, 20:, 3] = 128
    got = clean(_file(Image.fromarray(rgba)), PIXELS.model_copy(update={"background": "#0000ff"}), 40)
    assert (got[:, :20] == (0, 0, 255)).all()
    assert np.abs(got[:, 20:].astype(int) - (128, 0, 127)).max() <= 1


def test_transparent_colour_of_a_palette_or_header_counts():
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(1, (20, 0, 40, 40))
    got = clean(_file(palette, transparency=0), PIXELS, 40)
    assert (got[:, :20] == 255).all() and (got[:, 20:] == (0, 255, 0)).all()


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (40, 40), 77), (77, 77, 77)),
        (Image.new("1", (40, 40), 1), (255, 255, 255)),
        (Image.new("LA", (40, 40), (77, 255)), (77, 77, 77)),
    ],
)
def test_other_modes_become_rgb(image, colour):
    assert (clean(_file(image), PIXELS, 16) == colour).all()


def test_cmyk_becomes_rgb():
    got = clean(_file(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=95), PIXELS, 16)
    assert np.abs(got.astype(int) - (255, 0, 0)).max() <= 4


def test_deep_greyscale_is_scaled_not_clipped_or_rejected():
    data = _file(Image.fromarray(np.full((40, 40), 32896, np.uint16)))
    assert (clean(data, PIXELS, 16) == 128).all()
    assert _reason(data, deep_greyscale="reject") == "MODE_16BIT"


def test_a_phone_picture_with_a_preview_is_no_animation():
    first, preview = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    data = _file(first, "MPO", save_all=True, append_images=[preview])
    assert np.abs(clean(data, PIXELS, 16).astype(int) - (254, 0, 0)).max() <= 4


# What is rejected


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\0" * 100, b"GIF89a" + b"\0" * 50])
def test_no_image(data):
    assert _reason(data) == "NOT_IMAGE"


def test_no_image_shows_the_first_bytes():
    with pytest.raises(Rejected) as caught:
        clean(b"<html>", PIXELS, 16)
    assert b"<html>".hex() in caught.value.detail


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP"])
def test_truncated(suffix):
    data = _file(Image.fromarray(_noise()), suffix)
    for keep in (0.95, 0.6):
        assert _reason(data[: int(len(data) * keep)]) in ("BROKEN", "NOT_IMAGE")
    assert _reason(_file(Image.fromarray(_noise()), "JPEG")[:-100]) == "BROKEN"


def test_wrong_checksum_in_a_png():
    data = bytearray(_file(Image.fromarray(_noise())))
    data[data.index(b"IDAT") + 20] ^= 1
    assert _reason(bytes(data)) == "BROKEN"


@pytest.mark.parametrize("suffix", ["PNG", "WEBP"])
def test_animated(suffix):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    assert _reason(_file(frames[0], suffix, save_all=True, append_images=frames[1:])) == "ANIMATED"


def test_limits_on_size_and_shape():
    assert _reason(_file(Image.new("RGB", (40, 7)))) == "TOO_SMALL"
    assert _reason(_file(Image.new("RGB", (81, 20)))) == "TOO_NARROW"
    assert clean(_file(Image.new("RGB", (80, 20))), PIXELS, 16).shape == (16, 16, 3)
    assert _reason(_file(Image.new("RGB", (40, 40))), max_pixels=1599) == "TOO_MANY_PIXELS"
    assert clean(_file(Image.new("RGB", (40, 40))), PIXELS.model_copy(update={"max_pixels": 1600}), 16).any() == 0


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [2_000, 10_000, 20_000, 200_000])
def test_a_decompression_bomb_is_told_by_its_header(side):
    # The file holds next to no data: had it been decoded, the reason would be BROKEN.
    assert _reason(_png_header(side, side)) == "TOO_MANY_PIXELS"


def test_fully_transparent():
    assert _reason(_file(Image.new("RGBA", (40, 40), (255, 0, 0, 0)))) == "TRANSPARENT"


def test_mutated_files_are_cleaned_or_rejected_and_nothing_else():
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 3
    originals = [
        _file(Image.fromarray(_noise()), "PNG", exif=exif),
        _file(Image.fromarray(_noise()), "JPEG", exif=exif),
        _file(Image.fromarray(_noise()), "WEBP", exif=exif),
        _file(Image.fromarray(_noise(channels=4)), "PNG"),
        _file(Image.new("P", (40, 40)), "PNG", transparency=0),
    ]
    outcomes = {"cleaned": 0, "rejected": 0}
    for i in range(1000):
        data = bytearray(originals[i % len(originals)])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(min(len(data), 300 if rng.random() < 0.6 else len(data))))
            match rng.integers(4):
                case 0:
                    data[at] ^= 1 << rng.integers(8)
                case 1:
                    data[at : at + 16] = bytes(len(data[at : at + 16]))
                case 2:
                    del data[at : at + int(rng.integers(1, 9))]
                case _:
                    data[at:at] = rng.bytes(8)
        try:
            assert clean(bytes(data), PIXELS, 16).shape == (16, 16, 3)
            outcomes["cleaned"] += 1
        except Rejected:
            outcomes["rejected"] += 1
    assert min(outcomes.values()) > 100, outcomes


# Files


def test_read_takes_a_span_and_minds_the_ceiling(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read(str(tmp_path / "file"), 3, 4, PIXELS) == b"3456"
    with pytest.raises(Rejected, match="TOO_MANY_BYTES"):
        read(str(tmp_path / "file"), 0, PIXELS.max_bytes + 1, PIXELS)
    with pytest.raises(Rejected, match="UNREADABLE"):
        read(str(tmp_path / "missing"), 0, 4, PIXELS)


@pytest.mark.parametrize("changes", [{"background": "white"}, {"max_aspect_ratio": 0.5}, {"min_side_px": 0}])
def test_params_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        PixelParams.model_validate(PIXELS.model_dump() | changes)
