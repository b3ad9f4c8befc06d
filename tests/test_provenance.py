import numpy as np
import pytest

from ldm.errors import IntegrityError
from ldm.images import decode_png, encode_png
from ldm.provenance import Origin

SETTINGS = {"seed": 3, "guidance_scale": 2.5, "guidance_interval": [0.0, 1.0]}


def origins() -> list[Origin]:
    texts = ["a red circle", "ein grüner Stern ★"]
    return Origin.of_batch(texts, [7, 9], SETTINGS, {"unet": "1" * 64})


def test_a_png_carries_its_origin_and_its_pixels():
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for position, origin in enumerate(origins()):
        png = origin.png(picture)
        found = Origin.read(png, "here")
        assert found == origin and found.settings == SETTINGS
        assert (found.prompt_number, found.batch_size, found.position) == ([7, 9][position], 2, position)
        assert np.array_equal(decode_png(png), picture)
        assert png == origin.png(picture)


@pytest.mark.parametrize(
    ("png", "message"),
    [
        (encode_png(np.zeros((2, 2, 3), np.uint8)), "no PNG that says what it was made from"),
        (b"GIF89a", "no PNG that says"),
        (encode_png(np.zeros((2, 2, 3), np.uint8), {"ldm": '{"prompt": "x"}'}), "5 wrong fields"),
    ],
)
def test_a_picture_without_one_is_refused(png: bytes, message: str):
    with pytest.raises(IntegrityError, match=f"there: {message}"):
        Origin.read(png, "there")
