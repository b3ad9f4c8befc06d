"""Trained denoising networks, of this format and of former ones."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.core import artifact
from ldm.core.errors import IntegrityError
from ldm.denoiser.model import networks
from ldm.denoiser.model.network import Network
from ldm.denoiser.model.params import DiffusionParams, LogitNormalParams, MinSNRParams
from ldm.denoiser.model.unet import UNet
from tests.training_data import CHANNELS, LATENT_SIZE, UNET, WIDTH, unet_params

PARAMS = unet_params()
CPU = torch.device("cpu")
REST: dict[str, Any] = {
    "schedule": "flow",
    "prediction": "flow",
    "time_shift": 1.0,
    "stratified_times": True,
    "caption_dropout": 0.25,
}
DIFFUSION: dict[str, Any] = REST | {
    "loss_weighting": {"kind": "min_snr", "gamma": 5.0},
    "time_sampling": {"kind": "logit_normal", "mean": 0.0, "std": 1.0},
}
FORMER = REST | {
    "loss_weighting": "min_snr",
    "min_snr_gamma": 5.0,
    "time_sampling": "logit_normal",
    "logit_normal_mean": 0.0,
    "logit_normal_std": 1.0,
}
FLAT: dict[str, Any] = {
    "latent_channels": CHANNELS,
    "latent_size": LATENT_SIZE,
    "channels": [16, 32],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "num_transformer_layers": 1,
    "head_width": 8,
    "linear_projection": True,
    "context_width": WIDTH,
    "norm_groups": 4,
    "num_context_layers": 1,
    "max_context_tokens": 8,
    "position_embedding": True,
    "gradient_checkpointing": False,
}
CONFIGS: dict[int, dict[str, Any]] = {
    1: {"network": FLAT, "diffusion": FORMER},
    2: {"network": FLAT, "diffusion": DIFFUSION},
    3: {"network": FLAT | {"kind": "unet"}, "diffusion": DIFFUSION},
    4: {"network": FLAT | {"kind": "unet"}, "diffusion": DIFFUSION | {"offset_noise": 0.0}},
}
"""One network as each format described it, written out: a later key is in none of them."""


def write(folder: Path, config: dict[str, Any], version: int = networks.KIND.format) -> UNet:
    unet = UNet(PARAMS.network)
    kind = artifact.Kind("unet", networks.KIND.upgrades[: version - 1])
    artifact.write(folder, kind, config, unet.state_dict(), {}, {})
    return unet


@pytest.mark.parametrize("version", CONFIGS)
def test_a_network_of_any_format_opens_as_what_was_written(tmp_path: Path, version: int) -> None:
    assert networks.KIND.format == max(CONFIGS)
    written = write(tmp_path, CONFIGS[version], version)
    found, diffusion, passport = networks.load(tmp_path, CPU)
    assert passport.format_version == version and passport.config == CONFIGS[max(CONFIGS)]
    assert isinstance(found, UNet) and found.latent_shape == (CHANNELS, LATENT_SIZE, LATENT_SIZE)
    assert diffusion == DiffusionParams.model_validate(CONFIGS[4]["diffusion"])
    assert isinstance(diffusion.loss_weighting, MinSNRParams) and isinstance(diffusion.time_sampling, LogitNormalParams)
    assert not found.training and not any(parameter.requires_grad for parameter in found.parameters())
    assert all(torch.equal(a, b) for a, b in zip(written.parameters(), found.parameters(), strict=True))


def test_a_network_must_offer_what_the_contract_names() -> None:
    with pytest.raises(TypeError, match="forward"):
        type("Incomplete", (Network,), {})()


def test_uniform_weights_and_times_of_format_1_lose_the_values_of_other_kinds() -> None:
    upgrade = networks.KIND.upgrades[0]
    found = upgrade({"diffusion": FORMER | {"loss_weighting": "uniform", "time_sampling": "uniform"}})["diffusion"]
    uniform = {"loss_weighting": {"kind": "uniform"}, "time_sampling": {"kind": "uniform"}}
    assert found == REST | uniform


@pytest.mark.parametrize(
    ("network_config", "finding"),
    [
        ({**UNET["network"], "kind": "unheard"}, "passport.json: config.kind: Input should be 'unet'"),
        ({**UNET["network"], "channels": [16, 16]}, r"model.safetensors: Unexpected key"),
    ],
)
def test_what_this_code_cannot_build_is_refused(tmp_path: Path, network_config: dict[str, Any], finding: str) -> None:
    write(tmp_path, {"network": network_config, "diffusion": CONFIGS[4]["diffusion"]})
    with pytest.raises(IntegrityError, match=finding):
        networks.load(tmp_path, CPU)
