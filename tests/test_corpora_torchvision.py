"""Datasets of torchvision, on small files in the format of FashionMNIST that these tests write."""

import gzip
import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from ldm.core.errors import ConfigError, MachineError
from ldm.corpora import torchvision
from ldm.corpora.pairs import Pair
from ldm.corpora.params import TorchvisionParams

COUNTS = {"train": 40, "t10k": 6}
PARAMS = TorchvisionParams(
    kind="torchvision",
    dataset="FashionMNIST",
    arguments={"train": True},
    held_out_arguments={"train": False},
    caption="a picture of a {}",
    resampling="area",
    val_fraction=0.2,
    seed=0,
)


def pixels(part: str) -> np.ndarray:
    return np.random.default_rng(len(part)).integers(0, 256, (COUNTS[part], 28, 28), dtype=np.uint8)


def labels(part: str) -> np.ndarray:
    return np.arange(COUNTS[part], dtype=np.uint8) % 10


def idx(values: np.ndarray) -> bytes:
    """The file format of MNIST: zeros, type (8 = uint8), number of dimensions, sizes, values."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a download would bring. Nothing can be downloaded, since nobody listens there."""
    folder = tmp_path / "data/source"
    raw = folder / "FashionMNIST/FashionMNIST/raw"
    raw.mkdir(parents=True)
    resources: list[tuple[str, str]] = []
    for part in COUNTS:
        for name, values in ((f"{part}-images-idx3", pixels(part)), (f"{part}-labels-idx1", labels(part))):
            file = raw / f"{name}-ubyte.gz"
            file.write_bytes(gzip.compress(idx(values)))
            resources.append((file.name, hashlib.md5(file.read_bytes()).hexdigest()))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    return folder


def drawn(source: Path, size_px: int = 28, **changes: object) -> list[Pair]:
    return list(torchvision.pairs(PARAMS.model_copy(update=changes), size_px, source))


def test_images_and_class_names_are_those_of_the_files(source: Path) -> None:
    found = drawn(source)
    assert [pair.captions for pair in found[:2]] == [["a picture of a T-shirt/top"], ["a picture of a Trouser"]]
    assert found[1].claims == [{"class": "Trouser"}] and len({pair.key for pair in found}) == 46
    expected = np.concatenate([pixels("train"), pixels("t10k")])
    assert np.array_equal(np.stack([np.asarray(pair.image) for pair in found]), expected[..., None].repeat(3, -1))


def test_the_held_out_images_are_the_second_part_and_validation_a_share_of_the_first(source: Path) -> None:
    splits = [pair.split for pair in drawn(source)]
    assert set(splits[:40]) == {"train", "val"} and splits[40:] == ["held_out"] * 6
    assert len(drawn(source, held_out_arguments=None)) == 40


def test_images_are_resized(source: Path) -> None:
    small = drawn(source, size_px=14)[0].image
    means = pixels("train")[0].reshape(14, 2, 14, 2).mean((1, 3))
    assert np.abs(np.asarray(small)[..., 0] - means).max() <= 1, "Pillow rounds after each axis"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "FashionMINST"}, r"dataset: FashionMINST; expected [^\n]*\nfix: write FashionMNIST"),
        ({"arguments": {"split": "train"}}, r"arguments: FashionMNIST with split; expected arguments among .*train"),
        ({"dataset": "FakeData", "arguments": {}}, r"arguments: FakeData, which has no folder; expected"),
        (
            {"dataset": "EMNIST", "arguments": {"part": 1}},
            r"with part; expected arguments among split, train, transform",
        ),
        ({"dataset": "SVHN", "arguments": {"split": "all"}}, r"arguments: .*SVHN refuses: .*all"),
    ],
)
def test_what_torchvision_does_not_offer_is_refused_in_one_line(
    source: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        drawn(source, **changes)
    assert len(str(caught.value).splitlines()) == 2, "what, and its fix"


def test_samples_without_a_class_are_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FashionMNIST, "__getitem__", lambda _, number: (number, "no image"))
    with pytest.raises(ConfigError, match="dataset: FashionMNIST; expected images with a class each"):
        drawn(source)


def test_a_failed_download_is_one_line(source: Path) -> None:
    (source / "FashionMNIST/FashionMNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MachineError, match=r"could not get FashionMNIST: .*; expected its files in") as caught:
        drawn(source)
    assert len(str(caught.value).splitlines()) == 2 and "connect this machine" in str(caught.value)


def test_a_caption_has_one_place_for_the_class() -> None:
    for caption in ("no place", "{} and {}", "{name}"):
        with pytest.raises(ValueError, match="caption"):
            TorchvisionParams.model_validate(PARAMS.model_dump() | {"caption": caption})


def test_a_class_with_synonyms_is_called_by_the_first() -> None:
    """As those of Imagenette and ImageNet."""
    dataset = SimpleNamespace(classes=[("tench", "Tinca tinca"), ("cassette_player",), "church"])
    assert torchvision._class_names(dataset) == ["tench", "cassette player", "church"]
