import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.core import images
from ldm.core.errors import IntegrityError


def _noise(seed: int, size_px: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)


def test_png_round_trip_is_exact_and_its_bytes_are_repeatable():
    image = _noise(0)
    data = images.encode_png(image)
    assert np.array_equal(images.decode_png(data), image)
    assert images.encode_png(image.copy()) == data


@pytest.mark.parametrize("size_px", [1, 24, 257])
def test_images_of_shards_are_exact_and_smaller_than_png(size_px):
    smooth = (np.add.outer(np.arange(size_px), np.arange(size_px))[..., None] // np.array([2, 3, 5])).astype(np.uint8)
    assert len(images.encode(smooth)) < len(images.encode_png(smooth))
    for image in (_noise(0, size_px), smooth):
        data = images.encode(image)
        assert np.array_equal(images.decode(data), image) and images.encode(image.copy()) == data
        assert np.array_equal(images.decode(images.encode_png(image)), image), "as in shards of former versions"


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((3, 4, 4), np.uint8)]
)
def test_only_rgb_bytes_are_encoded(image):
    for encode in (images.encode, images.encode_png):
        with pytest.raises(AssertionError):
            encode(image)


def test_a_whole_png_is_read_and_any_damage_is_named():
    image = _noise(0, 8)
    data = images.encode_png(image, {"ldm": "{}"})
    assert np.array_equal(images.read_png(data, "here"), image)
    damaged = [data[:length] for length in range(len(data))]
    damaged += [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(len(data) - 12)]
    for changed in damaged:
        with pytest.raises(IntegrityError, match=r"^here: (a damaged PNG|RGB).*\nfix: "):
            images.read_png(changed, "here")
        images.read_text(changed, "ldm")


def _saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, *chunks: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join([head, *chunks, _chunk(b"IEND", b"")])


PICTURE = Image.fromarray(_noise(1))
OTHERS = {
    **{mode: _saved(PICTURE.convert(mode)) for mode in ("RGBA", "P", "L", "LA", "1")},
    "animated": _saved(PICTURE, save_all=True, append_images=[PICTURE.rotate(90)]),
    "wide": _saved(Image.new("RGB", (8193, 1))),
    "JPEG": _saved(PICTURE, "JPEG"),
    "huge": _png(60_000, _chunk(b"IDAT", b"x")),
    "a bomb of pixels": _png(10_000, _chunk(b"IDAT", b"x")),
    "a bomb of text": _png(8, _chunk(b"iTXt", b"ldm\0\1\0\0\0" + zlib.compress(bytes(10**7)))),
    "no pixels": _png(8),
    "empty": b"",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_we_never_write_is_refused(name: str):
    with pytest.raises(IntegrityError, match=r"^here: .*\nfix: "):
        images.read_png(OTHERS[name], "here")
    images.read_text(OTHERS[name], "ldm")


def test_to_tensor_keeps_order_and_puts_channels_first():
    arrays = [_noise(i) for i in range(3)]
    batch = images.to_tensor([images.encode_png(a) for a in arrays])
    assert batch.shape == (3, 3, 24, 24) and batch.dtype == torch.uint8 and batch.is_contiguous()
    for i, array in enumerate(arrays):
        assert np.array_equal(batch[i, 2].numpy(), array[:, :, 2])


def test_grid_places_images_in_reading_order_and_magnifies_whole_pixels():
    batch = torch.stack([torch.full((3, 64, 64), 10 * i, dtype=torch.uint8) for i in range(5)])
    picture = np.asarray(images.grid(batch, 3, None))
    assert picture.shape == (2 * 132 + 4, 3 * 132 + 4, 3)
    for i in range(5):
        top, left = 4 + i // 3 * 132, 4 + i % 3 * 132
        assert (picture[top : top + 128, left : left + 128] == 10 * i).all()
    assert (picture[136:, 268:] == 255).all(), "the unused cell stays white"


def test_grid_writes_each_caption_below_its_image_only():
    batch = np.full((2, 3, 128, 128), 255, np.uint8)
    picture = np.asarray(images.grid(batch, 2, ["many words " * 30 + "w" * 300, ""]))
    assert (picture[132:, 4:132] < 128).any(), "caption of the first image"
    assert (picture[:132] == 255).all() and (picture[:, 136:] == 255).all(), "nothing over images or beside the cell"


def test_a_caption_that_is_cut_says_so():
    blank = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    four = "\n".join(["abcdefghijklmnop"] * 4)
    fits, cut = (np.asarray(images.grid(blank, 1, [text])) for text in (four, f"{four} more"))
    rows = np.flatnonzero((fits != cut).any(axis=(1, 2)))
    assert len(rows) and rows.min() > 128 + 3 * 15, "the mark stands in the last line"


def test_grid_wants_a_caption_for_every_image():
    with pytest.raises(AssertionError, match="one caption per image"):
        images.grid(np.zeros((2, 3, 8, 8), np.uint8), 2, ["only one"])
