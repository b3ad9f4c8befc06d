"""Pixels as latents: nothing is lost, nothing is trained, and artefacts that encode differently differ."""

import json
from pathlib import Path

import pytest
import torch

from ldm.autoencoder.encoding.latents import LatentScale, measure
from ldm.autoencoder.model import networks
from ldm.autoencoder.model.identity import IdentityAutoencoder
from ldm.autoencoder.model.network import Posterior, to_image, to_signal
from ldm.autoencoder.model.params import IdentityParams
from ldm.autoencoder.training.params import TrainAutoencoderParams
from ldm.compute.precision import autocast
from ldm.core import artifact
from ldm.core.errors import ConfigError
from ldm.core.shards import Shards
from tests.kinds import KINDS
from tests.stage_scripts import script
from tests.test_stages_training import write_params
from tests.training_data import AUTOENCODER, NUM_SAMPLES, write_all

CPU = torch.device("cpu")
SOURCE = {
    "kind": "train",
    "network": {"kind": "identity", "latent_channels": 3},
    "reconstruction": None,
    "training": None,
}
TRAINED = AUTOENCODER["source"]


def identity(latent_channels: int) -> IdentityAutoencoder:
    network = networks.build(IdentityParams.model_validate({"kind": "identity", "latent_channels": latent_channels}))
    assert isinstance(network, IdentityAutoencoder)
    return network


def every_value(is_grey: bool) -> torch.Tensor:
    """Images that have all 256 values in all channels, in another order in each unless they are grey."""
    values = torch.arange(256).byte().reshape(1, 1, 16, 16)
    return values.expand(1, 3, 16, 16) if is_grey else torch.cat([values, values.flip(3), values.flip(2)], 1)


@pytest.mark.parametrize("latent_channels", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_pixel_value_comes_back_through_the_float16_of_the_cache_and_the_scale(
    latent_channels: int, precision: str
) -> None:
    image, network = every_value(is_grey=latent_channels == 1), identity(latent_channels)
    with autocast(CPU, precision):  # pyright: ignore[reportArgumentType]
        posterior = network.encode(to_signal(image))
    assert posterior.mean.shape == (1, latent_channels, 16, 16) and network.factor == 1
    cached = Posterior(posterior.mean.half().float(), posterior.log_variance.half().float())
    noise = torch.randn(cached.mean.shape, generator=torch.Generator().manual_seed(0))
    scale = LatentScale(torch.full((latent_channels,), -0.38), torch.full((latent_channels,), 0.77))
    z = scale.denormalise(scale.normalise(cached.sample(noise)))
    assert torch.equal(to_image(network.decode(z)), image)


def test_one_channel_keeps_the_mean_of_colours() -> None:
    signal = to_signal(every_value(is_grey=False))
    decoded = identity(1).decode(identity(1).encode(signal).mode())
    assert torch.allclose(decoded, signal.mean(1, keepdim=True).expand_as(signal))


def test_its_latents_are_measured_as_pixels() -> None:
    """The least variance of a posterior adds nothing to that of the pixels."""
    posterior = identity(3).encode(to_signal(every_value(is_grey=False)))
    scale = measure([{"mean": posterior.mean, "log_variance": posterior.log_variance}]).scale
    pixels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    assert torch.allclose(scale.mean, pixels.mean().expand(3), atol=1e-6)
    assert torch.allclose(scale.std, pixels.std(correction=0).expand(3), atol=1e-6)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    write_all(tmp_path / "data")
    return tmp_path


def test_the_stage_trains_nothing_and_says_that_nothing_is_lost(workspace: Path) -> None:
    hashes: set[str] = set()
    for channels in (1, 3):
        source = SOURCE | {"network": {"kind": "identity", "latent_channels": channels}}
        write_params(workspace, train_autoencoder=AUTOENCODER | {"source": source})
        script("train_autoencoder").main()
        network, passport = networks.load(workspace / "data/autoencoder", CPU)
        assert passport.facts == {"factor": 1, "latent_channels": channels}
        hashes.add(artifact.read_passport(workspace / "data/autoencoder", KINDS["autoencoder"]).content_sha256)
    assert len(hashes) == 2, "latents of one must not pass for latents of the other"
    results = workspace / "data/autoencoder_results"
    assert {path.name for path in results.iterdir()} == {
        *("metrics.json", "reconstructions.png"),
        *("curves.csv", "validation.csv"),  # empty: DVC's plots look for them
    }
    assert json.loads((results / "metrics.json").read_text()) == {"psnr_db": 78.1308, "ssim": 1.0}
    image = Shards(workspace / "data/images/val").images(range(NUM_SAMPLES["val"]))
    assert torch.equal(to_image(network.decode(network.encode(to_signal(image)).mode())), image)
    assert not (workspace / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"training": TRAINED["training"]},
            "training has values; expected null: network.kind identity has nothing",
        ),
        ({"network": TRAINED["network"]}, "reconstruction has null; expected values: network.kind kl has weights"),
        (
            {"network": {"kind": "identity", "latent_channels": 2}},
            r"train_autoencoder.source.network.latent_channels: found 2; expected one of 1, 3",
        ),
        (
            {"network": SOURCE["network"] | {"channels": [8]}},
            r"train_autoencoder.source.network.channels: unknown key; expected one of kind, latent_channels",
        ),
    ],
)
def test_keys_that_mean_nothing_are_refused(workspace: Path, changes: dict[str, object], said: str) -> None:
    write_params(workspace, train_autoencoder=AUTOENCODER | {"source": SOURCE | changes})
    with pytest.raises(ConfigError, match=said):
        script("train_autoencoder").main()
    TrainAutoencoderParams.model_validate(AUTOENCODER | {"source": SOURCE})
