import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (registers JPEG XL with Pillow)
import pytest
import pyvips
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import JpegImageFile

from ldm.core.errors import MachineError
from ldm.corpora import pixels
from ldm.corpora.files import Files
from ldm.corpora.pairs import Picture, Rejected
from ldm.corpora.pixels_params import PixelParams
from tests.corpora import PIXELS

P3 = Path(__file__).parent / "fixtures/cases/icc_p3"
pillow_heif.register_heif_opener()


def told(picture: Picture) -> tuple[str, ...]:
    """The notes but those of sizes."""
    return tuple(note for note in picture.notes if "=" not in note)


def _file(image: Image.Image, suffix: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return stream.getvalue()


def _noise(width: int = 40, height: int = 40, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def clean(data: bytes, params: PixelParams, size_px: int) -> np.ndarray:
    return pixels.clean(data, params, size_px).pixels


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


def _grey_tiff(values: np.ndarray, bits: int, white_is_zero: bool, order: str) -> bytes:
    """An uncompressed greyscale TIFF of one strip (TIFF 6.0); 12 bits are packed, two values in three bytes."""
    height, width = values.shape
    if bits == 16:
        strip = values.astype(f"{order}u2").tobytes()
    else:
        a, b = values.reshape(-1, 2).astype(int).T
        strip = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1 - white_is_zero, 273: 8, 277: 1, 278: height}
    tags |= {279: len(strip)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(strip))
    return head + strip + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("bits", "white_is_zero"), [(16, False), (16, True), (12, False)])
def test_greyscale_of_a_tiff_is_read_as_its_header_says(bits, white_is_zero):
    values = np.full((40, 40), 3 * (2**bits - 1) // 4, np.uint16)
    data = _grey_tiff(values, bits, white_is_zero, "<")
    expected = 255 / 4 if white_is_zero else 3 * 255 / 4
    assert np.abs(clean(data, PIXELS, 16).astype(float) - expected).max() <= 1
    if bits == 16:
        assert np.abs(clean(data, PIXELS, 16).astype(int) - _vips(data)[:16, :16]).max() <= 1


def test_a_phone_picture_with_a_preview_is_no_animation():
    first, preview = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    data = _file(first, "MPO", save_all=True, append_images=[preview])
    assert np.abs(clean(data, PIXELS, 16).astype(int) - (254, 0, 0)).max() <= 4


# Colours, transparency and depth, beside libvips and the specification


def _vips(data: bytes) -> np.ndarray:
    """libvips: upright, in sRGB by the embedded profile, on white, 8 bits."""
    image = pyvips.Image.new_from_buffer(data, "").autorot()
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", embedded=True, intent="relative")
    elif image.interpretation in ("grey16", "rgb16", "b-w"):
        image = image.colourspace("srgb")
    image = image.flatten(background=255) if image.hasalpha() else image
    pixels = image.numpy()
    return np.broadcast_to(pixels if pixels.ndim == 3 else pixels[..., None], (*pixels.shape[:2], 3)).astype(int)


@pytest.mark.parametrize("is_transparent", [False, True])
def test_around_a_gif_frame_that_is_smaller_than_its_canvas_is_the_background(is_transparent):
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (16, 24), np.uint8)).convert("RGB").quantize(8)
    data = bytearray(_file(small, "GIF", **({"transparency": 3} if is_transparent else {})))
    data[6:10] = (48).to_bytes(2, "little") + (32).to_bytes(2, "little")
    found = pixels.whole(bytes(data), PIXELS).pixels
    assert (found[16:] == 255).all() and (found[:, 24:] == 255).all()
    reference = _vips(bytes(data))  # it leaves an opaque GIF black there, unlike browsers
    assert (found == reference).all() if is_transparent else (found[:16, :24] == reference[:16, :24]).all()


def test_a_tiff_of_floats_is_no_broken_one():
    data = pyvips.Image.new_from_array(np.zeros((20, 20, 3), np.float32)).write_to_buffer(".tif")
    with pytest.raises(Rejected, match="MODE"):
        pixels.whole(data, PIXELS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_iphones_colours_are_brought_to_srgb(suffix):
    data = (P3 / f"p3_{suffix}.{suffix}").read_bytes()
    with Image.open(P3 / "expected.png") as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    picture = pixels.whole(data, PIXELS)
    allowed = 1.1 if suffix == "jpg" else 0.3  # the JPEG is lossy
    assert np.abs(picture.pixels - expected).mean() < allowed
    assert np.abs(picture.pixels - _vips(data)).mean() < 0.5
    assert "icc_profile" in picture.notes


def test_profiles_that_are_srgb_damaged_or_made_for_other_colours_change_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile, notes in {
        srgb: ("png",),
        b"damaged": ("png", "icc_unreadable"),
        pyvips.Image.profile_load("cmyk"): ("png", "icc_unreadable"),
    }.items():
        array = _noise()
        picture = pixels.whole(_file(Image.fromarray(array), icc_profile=profile), PIXELS)
        assert np.array_equal(picture.pixels, array) and told(picture) == notes


def test_the_profile_of_cmyk_is_followed():
    smooth = np.stack(np.meshgrid(np.arange(40), np.arange(40)), -1) * 6
    rgb = np.dstack([smooth, 255 - smooth[..., :1]]).astype(np.uint8)
    image = pyvips.Image.new_from_array(rgb, interpretation="srgb").icc_transform("cmyk", input_profile="srgb")
    data = image.write_to_buffer(".jpg", Q=95)
    picture = pixels.whole(data, PIXELS)
    assert told(picture) == ("jpeg", "cmyk", "icc_profile")
    assert np.abs(picture.pixels - _vips(data)).mean() < 1
    with Image.open(io.BytesIO(data)) as plain:
        assert np.abs(np.asarray(plain.convert("RGB")) - _vips(data)).mean() > 10, "without the profile"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "TIFF", "HEIF"])
def test_transparent_pictures_keep_their_colours_under_a_profile(kind):
    p3 = pyvips.Image.profile_load("p3")
    rgba = np.dstack([np.full((40, 40, 3), (200, 40, 30), np.uint8), np.full((40, 40, 1), 255, np.uint8)])
    rgba[:20, :, 3] = 0
    got = pixels.whole(_file(Image.fromarray(rgba), kind, icc_profile=p3, lossless=True), PIXELS)
    assert (got.pixels[:18] == 255).all() and {"transparent", "icc_profile"} <= set(got.notes)
    opaque = pixels.whole(_file(Image.fromarray(rgba[..., :3]), icc_profile=p3), PIXELS).pixels[30, 30].astype(int)
    assert opaque[0] > 210 and np.abs(got.pixels[22:] - opaque).max() <= 6


def _png(array: np.ndarray, bits: int, transparent: tuple[int, ...]) -> bytes:
    """A PNG of grey [h w] or RGB [h w 3] values of any depth with one transparent colour (tRNS)."""
    height, width = array.shape[:2]
    rows = array.reshape(height, -1)
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        bit = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = [np.packbits(row.reshape(-1)).tobytes() for row in bit.astype(np.uint8)]
    head = struct.pack(">IIBBBBB", width, height, bits, 0 if array.ndim == 2 else 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in packed))
    parts = (
        (b"IHDR", head),
        (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
        (b"IDAT", body),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


@pytest.mark.parametrize(("channels", "bits"), [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (3, 8), (3, 16)])
def test_one_transparent_colour_becomes_the_background(channels, bits):
    rng = np.random.default_rng(bits)
    array = rng.integers(0, 2**bits, (40, 40, channels))
    transparent = tuple(int(value) for value in array[3, 4])
    array[10:20, 10:20] = transparent
    array[21, 21] = (*transparent[:-1], transparent[-1] ^ 1)  # the nearest colour stays
    expected = np.broadcast_to(array * 255 / (2**bits - 1), (40, 40, 3)).copy()
    expected[(array == transparent).all(2)] = 255
    data = _png(array if channels == 3 else array[..., 0], bits, transparent)
    picture = pixels.whole(data, PIXELS)
    assert np.abs(picture.pixels - expected).max() <= (1 if bits == 16 else 0)
    assert set(told(picture)) == {"png", "transparent", *(["deep"] if bits == 16 else [])}
    assert np.abs(picture.pixels - _vips(data)).max() <= (1 if bits == 16 else 0)


def test_deep_greyscale_with_alpha_follows_the_setting_too():
    array = np.full((40, 40, 2), 65535, np.uint16)
    array[..., 0] = 32896
    data = pyvips.Image.new_from_array(array, interpretation="grey16").write_to_buffer(".png")
    assert (clean(data, PIXELS, 16) == 128).all()
    assert _reason(data, deep_greyscale="reject") == "MODE_16BIT"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_orientations_are_those_of_libvips(kind):
    array = np.kron(_noise(5, 4), np.ones((8, 8, 1), np.uint8))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = _file(Image.fromarray(array), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        picture = pixels.whole(data, PIXELS)
        reference = _vips(data)
        assert picture.pixels.shape == reference.shape and np.abs(picture.pixels - reference).mean() < 1


# Size


@pytest.mark.parametrize(("resampling", "size_px"), [("area", 24), ("lanczos", 32)])
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(monkeypatch, resampling, size_px):
    coarse = np.random.default_rng(0).integers(0, 256, (12, 19, 3), dtype=np.uint8)
    data = _file(Image.fromarray(coarse).resize((1239, 801), Image.Resampling.BICUBIC), "JPEG", quality=92)
    params = PIXELS.model_copy(update={"resampling": resampling})
    target = 64 // pixels.ENOUGH[resampling]
    assert pixels.whole(data, params, [(target, target)]).pixels.shape == (100, 155, 3), (
        "an eighth, and no part of a pixel"
    )
    smaller = clean(data, params, size_px)
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    whole = clean(data, params, size_px)
    assert not np.array_equal(smaller, whole) and np.abs(smaller.astype(int) - whole).mean() < 1.2


def test_an_image_of_twice_the_target_is_decoded_in_full():
    data, params = _file(Image.fromarray(_noise(64, 64)), "JPEG"), PIXELS.model_copy(update={"resampling": "lanczos"})
    shapes = [pixels.whole(data, params, [(side, side)]).pixels.shape for side in (32, 17, 16)]
    assert shapes == [(64, 64, 3), (64, 64, 3), (32, 32, 3)]


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_picture_for_a_bucket_is_decoded_at_twice_the_size_of_that_bucket(turn: int):
    """Upright, the picture has 96 x 160 px. Half of that is twice a bucket of 24 x 40, and less than twice 32 x 32."""
    stored = _noise(96, 160) if turn == 6 else _noise(160, 96)
    exif = Image.Exif()
    exif[0x0112] = turn
    data, params = (
        _file(Image.fromarray(stored), "JPEG", exif=exif),
        PIXELS.model_copy(update={"resampling": "lanczos"}),
    )
    wide, square, tall = (24, 40), (32, 32), (40, 24)
    shapes = [pixels.whole(data, params, sizes).pixels.shape for sizes in ([wide], [wide, square, tall], [square], ())]
    assert shapes == [(48, 80, 3), (48, 80, 3), (96, 160, 3), (96, 160, 3)]


def test_a_phone_of_200_megapixels_is_allowed_where_the_params_say_so():
    data = _png_header(16320, 12240)
    assert _reason(data, max_pixels=199_000_000, max_bytes=2**30) == "TOO_MANY_PIXELS"
    assert _reason(data, max_pixels=200_000_000, max_bytes=2**30) == "BROKEN", "decoded, and there are no pixels in it"


# What is rejected


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\0" * 100, b"8BPS" + b"\0" * 50])
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
    assert _reason(_png(np.full((40, 40), 3), 2, (3,))) == "TRANSPARENT"


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
        (P3 / "p3_webp.webp").read_bytes(),
        *(_file(Image.fromarray(_noise()), kind) for kind in ("GIF", "BMP", "AVIF", "HEIF", "JXL")),
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
    array = _noise()
    data = _file(Image.fromarray(array))
    (tmp_path / "file").write_bytes(b"abc" + data + b"def")
    files = Files(tmp_path)
    assert np.array_equal(pixels.read(files, "file", 3, len(data), PIXELS, 40).pixels, array)
    with pytest.raises(Rejected, match="TOO_MANY_BYTES"):
        pixels.read(files, "file", 0, PIXELS.max_bytes + 1, PIXELS, 40)
    with pytest.raises(Rejected, match="UNREADABLE"):
        pixels.read(files, "missing", 0, 4, PIXELS, 40)


def test_formats_of_packages_that_are_missing_are_refused(monkeypatch):
    pixels.require(PIXELS)
    monkeypatch.setattr(pixels, "find_spec", lambda name: None if name == "pillow_heif" else object())
    with pytest.raises(MachineError, match=r"(?s)heic.*pip install 'ldm\[heif\]'"):
        pixels.require(PIXELS)
    pixels.require(PIXELS.model_copy(update={"formats": ["jpeg", "jxl"]}))
