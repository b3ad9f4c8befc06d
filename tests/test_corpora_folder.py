from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.core.errors import ConfigError
from ldm.corpora import folder
from ldm.corpora.files import Files
from ldm.corpora.pairs import Pair, Rejected, Rejection
from ldm.corpora.params import FolderParams
from tests.corpora import CLEANING

PARAMS = FolderParams(kind="folder", directory="mine", cleaning=CLEANING, val_fraction=0.3, seed=0)


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def _put(root: Path, name: str, caption: str | bytes | None, colour: str = "red") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path, "PNG")
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())


def _read(root: Path) -> list[Pair | Rejection]:
    return [item for unit in folder.units(PARAMS, 16, Files(root)) for item in unit.items()]


def test_images_with_captions_in_order_of_paths(mine):
    _put(mine, "b.png", "a blue thing\n\n  something   blue \n", "blue")
    _put(mine, "sub dir/a.JPG", "a red thing", "red")
    pairs = _read(mine)
    assert [pair.source["file"] for pair in pairs] == ["b.png", "sub dir/a.JPG"]
    assert [pair.captions for pair in pairs] == [["a blue thing", "something blue"], ["a red thing"]]
    assert pairs[0].key == "b" and pairs[1].key.startswith("sub-dir-a-")
    assert [pair.claims for pair in pairs] == [[None, None], [None]]
    for pair, colour in zip(pairs, [(0, 0, 255), (255, 0, 0)], strict=True):
        assert np.array_equal(pair.image(), np.full((16, 16, 3), colour, np.uint8))


CASES = {
    "MISSING_CAPTION": lambda root: _put(root, "x.png", None),
    "EMPTY_CAPTION": lambda root: _put(root, "x.png", " \n\n"),
    "NOT_UTF8": lambda root: _put(root, "x.png", b"caf\xe9"),
    "LONG_CAPTION": lambda root: _put(root, "x.png", "fine\n" + "x" * 201),
    "TOO_MANY_BYTES": lambda root: _put(root, "x.png", "x " * 60_000),
    "MISSING_IMAGE": lambda root: (root / "x.txt").write_text("a caption"),
    "UNKNOWN_FILE": lambda root: (root / "x.bmp").write_bytes(b"BM"),
}


@pytest.mark.parametrize("reason", CASES)
def test_rejections(mine, reason):
    CASES[reason](mine)
    (item,) = _read(mine)
    assert isinstance(item, Rejection) and item.reason == reason and item.detail
    assert item.key == "x" and item.source["file"].startswith("x.")


def test_an_image_that_does_not_decode_is_told_when_it_is_made(mine):
    _put(mine, "x.png", "a caption")
    (mine / "x.png").write_bytes(b"<html>")
    (item,) = _read(mine)
    with pytest.raises(Rejected, match="NOT_IMAGE"):
        item.image()


def test_dangling_links_and_linked_folders_are_accounted_for(mine):
    (mine / "gone.png").symlink_to("nowhere")
    (mine / "gone.txt").write_text("a caption")
    (mine / "circle").symlink_to(".")
    found = {item.key: item.reason for item in _read(mine)}
    assert found == {"gone": "UNREADABLE", "circle": "UNKNOWN_FILE"}


def test_hidden_files_readmes_and_files_of_dvc_are_not_samples(mine):
    _put(mine, "a.png", "a caption")
    for name in (".DS_Store", "README.md", "README.txt", ".git/config", "mine.dvc"):
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_text("x")
    assert [item.key for item in _read(mine)] == ["a"]


def test_an_empty_folder_is_refused(mine):
    with pytest.raises(ConfigError, match=r"prepare\.corpus\.directory.*mine: no file to read"):
        _read(mine)
