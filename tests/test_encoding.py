"""Images are decoded by threads while others are encoded."""

import threading
from pathlib import Path

import pytest
import torch

from ldm.autoencoder.encoding.params import EncodeLatentsParams
from ldm.autoencoder.encoding.shards import encode
from ldm.autoencoder.model import networks
from ldm.core import images
from ldm.core.shards import Shards
from tests.training_data import write_autoencoder, write_images

CPU = torch.device("cpu")
PARAMS = EncodeLatentsParams.model_validate(
    {"batch_size": 4, "precision": "fp32", "mirrored": True, "scale": {"kind": "measured"}, "statistics_tolerance": 1}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder and 13 images."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "images")
    write_autoencoder(root / "autoencoder")
    return root


def encoded(folder: Path, samples: range, num_workers: int) -> dict[str, torch.Tensor]:
    autoencoder, _ = networks.load(folder / "autoencoder", CPU)
    return encode(autoencoder, Shards(folder / "images/train"), samples, PARAMS, True, num_workers, CPU)


@pytest.mark.parametrize("samples", [range(13), range(2, 6), range(5, 12)])
def test_threads_decode_the_same_images_in_the_same_order(folder: Path, samples: range) -> None:
    alone, beside = (encoded(folder, samples, num_workers) for num_workers in (0, 3))
    assert list(alone) == ["mean", "log_variance", "mean_mirrored", "log_variance_mirrored"]
    for name, tensor in alone.items():
        assert len(tensor) == len(samples) and torch.equal(tensor, beside[name]), name
    assert not torch.equal(alone["mean"][0], alone["mean"][1]), "the images differ"


def test_a_damaged_image_ends_the_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, real = list[str](), images.decode

    def decode(data: bytes) -> object:
        decoded.append(threading.current_thread().name)
        if len(decoded) == 6:
            raise ValueError("damaged")
        return real(data)

    monkeypatch.setattr(images, "decode", decode)
    with pytest.raises(ValueError, match="damaged"):
        encoded(folder, range(13), num_workers=2)
    assert all(name.startswith("ahead") for name in decoded)
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())
