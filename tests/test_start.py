"""A training may start from a trained denoiser if what that was trained with is what is here, or if the params say that
it is not."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser.model.unet import UNet
from ldm.denoiser.training.inputs import Inputs
from ldm.denoiser.training.params import InitFromParams
from ldm.denoiser.training.start import load_weights, start
from tests.kinds import KINDS
from tests.training_data import load_all, unet_params

PARAMS = unet_params()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return load_all(tmp_path_factory.mktemp("inputs"))


def init_from(directory: Path, *may_differ: str) -> InitFromParams:
    return InitFromParams.model_validate({"path": str(directory), "may_differ": may_differ})


def write(
    directory: Path,
    inputs: Inputs,
    diffusion: dict[str, Any] | None = None,
    made_from: dict[str, str] | None = None,
    facts: dict[str, Any] | None = None,
) -> artifact.Passport:
    """A trained denoiser as stage `train_unet` writes it from these inputs, but for what is named."""
    torch.manual_seed(1)
    unet = UNet(PARAMS.network)
    torch.nn.init.normal_(unet.conv_out.weight)
    config = {name: getattr(PARAMS, name).model_dump(mode="json") for name in ("network", "diffusion")}
    config["diffusion"] |= diffusion or {}
    made_from, facts = inputs.sha256 | (made_from or {}), inputs.facts | (facts or {})
    return artifact.write(directory, KINDS["unet"], config, unet.state_dict(), made_from, facts)


def test_training_starts_from_the_weights_of_a_denoiser_that_fits(inputs: Inputs, tmp_path: Path):
    # Other captions and images, another loss and other times do not matter.
    passport = write(
        tmp_path,
        inputs,
        diffusion={"caption_dropout": 0.5, "time_shift": 3.0, "loss_weighting": {"kind": "min_snr", "gamma": 5.0}},
        made_from={"embeddings": "0" * 64, "latents_train": "1" * 64},
        facts={"image_size_px": 99},
    )
    fresh = UNet(PARAMS.network)
    assert load_weights(fresh, init_from(tmp_path), PARAMS, inputs) == passport.content_sha256
    trained = artifact.read(tmp_path, KINDS["unet"])[1]
    assert all(torch.equal(weight, trained[name]) for name, weight in fresh.state_dict().items())


SCALE = {"mean": [1.0] * 4, "std": [3.0] * 4}
FOREIGN = {
    "schedule": ({"diffusion": {"schedule": "cosine"}}, "schedule flow; expected cosine, as in"),
    "prediction": ({"diffusion": {"prediction": "v"}}, "prediction flow; expected v, as in"),
    "text_encoder": (
        {"facts": {"null_sha256": "0" * 64, "context_tokens": 9}},
        rf"text_encoder with null embedding \w{{64}} of 5 tokens; expected with null embedding {'0' * 64} of 9 tokens",
    ),
    "autoencoder": (
        {"made_from": {"autoencoder": "0" * 64}},
        rf"autoencoder \w{{64}}; expected {'0' * 64}, as in",
    ),
    "latent_scale": (
        {"facts": {"latent_scale": {**SCALE, "std": [3.0, 3.0, 3.0, 3.00001]}}},
        "latent_scale of mean 1, 1, 1, 1 and deviation 3, 3, 3, 3; expected of mean 1, 1, 1, 1 and deviation 3, 3, 3, "
        r"3\.00001, as in",
    ),
}


@pytest.mark.parametrize("trait", FOREIGN)
def test_a_denoiser_of_something_else_is_refused_unless_the_params_name_it(trait: str, inputs: Inputs, tmp_path: Path):
    changes, message = FOREIGN[trait]
    passport = write(tmp_path, inputs, **changes)
    fresh = UNet(PARAMS.network)
    before = {name: weight.clone() for name, weight in fresh.state_dict().items()}
    others = [other for other in FOREIGN if other != trait]
    with pytest.raises(ConfigError) as caught:
        load_weights(fresh, init_from(tmp_path, *others), PARAMS, inputs)
    finding, fix = str(caught.value).splitlines()
    assert re.match(rf"params\.yaml: train_unet\.init_from: {message}", finding) and str(tmp_path) in finding
    assert fix == f"fix: train with that one, or name {trait} in may_differ if the change is meant"
    assert all(torch.equal(weight, before[name]) for name, weight in fresh.state_dict().items())
    # What is listed and does not differ does no harm.
    for allowed in ([trait], FOREIGN):
        assert load_weights(fresh, init_from(tmp_path, *allowed), PARAMS, inputs) == passport.content_sha256


def test_a_denoiser_goes_on_with_the_scale_that_it_knows(inputs: Inputs, tmp_path: Path):
    theirs = {"mean": [0.5] * 4, "std": [2.0] * 4}
    passport = write(tmp_path, inputs, facts={"latent_scale": theirs})
    params = PARAMS.model_copy(update={"init_from": init_from(tmp_path)})
    scaled, sha256 = start(UNet(PARAMS.network), params, inputs)
    assert sha256 == inputs.sha256 | {"init_from": passport.content_sha256}
    assert scaled.facts == inputs.facts | {"latent_scale": theirs}
    samples, noise = np.arange(3), torch.zeros(3, 4, 4, 4)
    plain = 3 * inputs.train.latents(samples, noise) + 1
    torch.testing.assert_close(scaled.train.latents(samples, noise), (plain - 0.5) / 2)
    assert scaled.val.scale == scaled.train.scale
    # Unless another one is meant.
    params = PARAMS.model_copy(update={"init_from": init_from(tmp_path, "latent_scale")})
    assert start(UNet(PARAMS.network), params, inputs)[0] is inputs
    assert start(UNet(PARAMS.network), PARAMS, inputs) == (inputs, inputs.sha256)


def test_another_autoencoder_of_the_same_scale_is_another_latent_space(inputs: Inputs, tmp_path: Path):
    write(tmp_path, inputs, made_from={"autoencoder": "0" * 64})
    with pytest.raises(ConfigError, match="autoencoder"):
        load_weights(UNet(PARAMS.network), init_from(tmp_path, "latent_scale"), PARAMS, inputs)


def test_scales_are_compared_to_six_digits(inputs: Inputs, tmp_path: Path):
    write(tmp_path, inputs, facts={"latent_scale": {**SCALE, "mean": [1.0, 1.0, 1.0, 1.0000001]}})
    load_weights(UNet(PARAMS.network), init_from(tmp_path), PARAMS, inputs)


def test_all_that_differs_is_named_at_once(inputs: Inputs, tmp_path: Path):
    write(tmp_path, inputs, diffusion={"prediction": "v"}, made_from={"autoencoder": "0" * 64})
    params = unet_params(network={"head_width": 4, "num_context_layers": 0})
    with pytest.raises(ConfigError) as caught:
        load_weights(UNet(params.network), init_from(tmp_path), params, inputs)
    lines = str(caught.value).splitlines()[::2]
    named = [re.match(r"params\.yaml: train_unet\.(network\.\w+|init_from: \w+)", line) for line in lines]
    assert [match and match[1] for match in named] == [
        "network.head_width",
        "network.num_context_layers",
        "init_from: prediction",
        "init_from: autoencoder",
    ]


def test_a_network_of_another_shape_is_refused_whatever_may_differ(inputs: Inputs, tmp_path: Path):
    write(tmp_path, inputs)
    params = unet_params(network={"head_width": 4})
    with pytest.raises(ConfigError, match=r"train_unet\.network\.head_width: found 4; expected 8, as in"):
        load_weights(UNet(params.network), init_from(tmp_path, *FOREIGN), params, inputs)


def test_a_missing_folder_and_a_passport_that_says_too_little_are_integrity_errors(inputs: Inputs, tmp_path: Path):
    missing = r"no such file or folder; expected a trained UNet\nfix: correct train_unet\.init_from"
    with pytest.raises(IntegrityError, match=missing):
        load_weights(UNet(PARAMS.network), init_from(tmp_path / "none"), PARAMS, inputs)
    written = write(tmp_path, inputs)
    facts = {name: fact for name, fact in written.facts.items() if name != "latent_scale"}
    artifact.write_passport(tmp_path, KINDS["unet"], written.config, written.inputs, facts, written.content_sha256)
    with pytest.raises(IntegrityError, match="no key 'latent_scale'"):
        load_weights(UNet(PARAMS.network), init_from(tmp_path), PARAMS, inputs)


def test_latents_of_another_size_take_the_positions_interpolated(inputs: Inputs, tmp_path: Path):
    write(tmp_path, inputs)
    trained = artifact.read(tmp_path, KINDS["unet"])[1]
    params = unet_params(network={"latent_size": 8, "gradient_checkpointing": True})
    larger = UNet(params.network)
    load_weights(larger, init_from(tmp_path), params, inputs)
    found = larger.state_dict()
    positions = found.pop("position_embedding")
    expected = torch.nn.functional.interpolate(trained["position_embedding"], (8, 8), mode="bicubic")
    assert positions.shape == (1, 16, 8, 8) and torch.equal(positions, expected)
    assert all(torch.equal(weight, trained[name]) for name, weight in found.items())


def test_heads_of_one_width_are_those_of_a_list(inputs: Inputs, tmp_path: Path):
    write(tmp_path, inputs)
    params = unet_params(network={"head_width": [8, 8]})
    load_weights(UNet(params.network), init_from(tmp_path), params, inputs)


def test_a_scale_of_other_channels_is_refused_where_the_weights_are_made_to_fit(inputs: Inputs, tmp_path: Path):
    write(tmp_path, inputs, facts={"latent_scale": {"mean": [1.0], "std": [3.0]}})
    params = PARAMS.model_copy(update={"init_from": init_from(tmp_path)})
    with pytest.raises(
        ConfigError, match="latents of 4 channels; expected 1, as its latent scale has\nfix: name latent"
    ):
        start(UNet(PARAMS.network), params, inputs)
    params = PARAMS.model_copy(update={"init_from": init_from(tmp_path, "latent_scale")})
    assert start(UNet(PARAMS.network), params, inputs)[0].facts == inputs.facts
