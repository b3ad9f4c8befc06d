"""Pictures that tasks start from: files and pixels, sizes, masks, and what is refused."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.core.errors import ConfigError
from ldm.tools.tasks import masks, pictures


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_file_is_read_and_hashed(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", noise(8, 12), **({"lossless": True} if suffix == "webp" else {}))
    picture = pictures.read(path)
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and picture.where == str(path)
    assert picture.pixels.shape == (8, 12, 3)
    assert np.array_equal(picture.pixels, noise(8, 12)) == (suffix != "jpg")


def test_transparency_is_white_and_exif_is_obeyed(tmp_path: Path) -> None:
    rgba = np.dstack([noise(4, 4), np.zeros((4, 4), np.uint8)])
    rgba[0, 0, 3] = 255
    assert (pictures.read(saved(tmp_path / "a.png", rgba)).pixels[1:] == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pictures.read(saved(tmp_path / "b.png", noise(4, 6), exif=exif)).pixels.shape == (6, 4, 3)


@pytest.mark.parametrize("beside", [255, 0])
def test_what_is_transparent_in_a_mask_is_black(tmp_path: Path, beside: int) -> None:
    """As the layer of a brush: its strokes are white, and what is beside them has any colour."""
    layer = np.full((4, 4, 4), (beside, beside, beside, 0), np.uint8)
    layer[1, 2] = 255
    path = saved(tmp_path / "mask.png", layer)
    for mask in (path, str(path)):
        found = pictures.row({"image": saved(tmp_path / "image.png", noise(4, 4)), "mask": mask})["mask"]
        assert np.argwhere(found.pixels.max(2)).tolist() == [[1, 2]]
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_image_of_the_right_size_stays_and_another_is_its_centre_square() -> None:
    assert np.array_equal(pictures.fitted(pictures.of(noise(8, 8)), (8, 8)).permute(1, 2, 0).numpy(), noise(8, 8))
    wide = pictures.fitted(pictures.of(noise(4, 8)), (2, 2)).permute(1, 2, 0).numpy().astype(float)
    blocks = noise(4, 8)[:, 2:6].reshape(2, 2, 2, 2, 3).mean((1, 3))
    assert np.abs(wide - blocks).max() <= 1


def test_a_pixel_of_a_mask_is_white_if_any_that_it_covers_is() -> None:
    mask = np.full((8, 8, 3), 127, np.uint8)
    mask[5, 2] = 128
    white = pictures.white(pictures.of(mask), (4, 4))
    assert white.nonzero().tolist() == [[0, 2, 1]]
    assert int(pictures.white(pictures.of(mask), (8, 8)).sum()) == 1
    large = np.zeros((2048, 2048, 3), np.uint8)
    large[1000, 77] = 255
    assert pictures.white(pictures.of(large), (64, 64)).nonzero().tolist() == [[0, 31, 2]]


def test_one_picture_is_for_all_prompts_and_several_are_one_for_each(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", noise(8, 8))
    tensor = torch.from_numpy(noise(8, 8)).permute(2, 0, 1)
    both = pictures.rows({"image": [path, tensor], "mask": "half"}, 2)
    assert np.array_equal(both[0]["image"].pixels, both[1]["image"].pixels)
    assert both[0]["image"].sha256 != both[1]["image"].sha256 and both[0]["mask"].where == "mask half"
    assert pictures.rows({"image": str(path)}, 3)[2]["image"].sha256 == both[0]["image"].sha256
    assert len(pictures.rows({"image": torch.stack([tensor] * 3)}, 3)) == 3
    with pytest.raises(ConfigError, match="image: 2 pictures; expected 1 or 3"):
        pictures.rows({"image": [path, path]}, 3)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "image.png", noise(8, 8))
    saved(tmp_path / "tall.png", noise(9, 8))
    saved(tmp_path / "black.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "text.png").write_text("no image")
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(stream, "PNG")
    (tmp_path / "cut.png").write_bytes(stream.getvalue()[:5000])
    image = tmp_path / "image.png"
    for sources, message in [
        ({"image": tmp_path / "text.png"}, "text.png: no image that can be read"),
        ({"image": tmp_path / "cut.png"}, "cut.png: no image that can be read"),
        ({"image": tmp_path / "none.png"}, "none.png: no such file; expected a PNG, JPEG or WebP file"),
        ({"image": tmp_path}, "Is a directory"),
        ({"image": torch.zeros(3, 8, 8)}, "image: a Tensor; expected a path or a uint8 tensor"),
        ({"image": image, "mask": tmp_path / "tall.png"}, "tall.png: 9 x 8 pixels; expected 8 x 8 pixels"),
        ({"image": image, "mask": tmp_path / "black.png"}, "black.png: a mask without any white pixel"),
        (
            {"image": image, "mask": "halves"},
            "halves: no such file; expected a PNG, JPEG or WebP file, or a mask of a name: thin, wide, half",
        ),
        ({"mask": "half"}, "mask: no image with it"),
    ]:
        with pytest.raises(ConfigError) as error:
            pictures.row(sources)
        assert message in str(error.value) and "\nfix: " in str(error.value)


def test_named_masks_have_their_shares_and_reach_all_sides() -> None:
    shares = {name: masks.named(name, 64, 64).mean() for name in masks.NAMES}
    assert shares == pytest.approx(
        {"thin": 1 - (56 / 64) ** 2, "wide": 0.25, "half": 0.5, "expand": 15 / 16, "lines": 0.5}
    )
    assert all(masks.named(name, 5, 3).shape == (5, 3) for name in masks.NAMES)
    assert not masks.named("lines", 6, 6)[::2].any() and masks.named("lines", 6, 6)[1::2].all()
    known = ~masks.grid(6, 6, 3)
    assert np.argwhere(known).tolist() == [[0, 0], [0, 3], [3, 0], [3, 3]]
