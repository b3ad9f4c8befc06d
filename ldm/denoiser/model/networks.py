"""The kinds of denoising network: one place that builds a new one, and one that opens a trained one."""

from pathlib import Path

import torch
from pydantic import TypeAdapter

from ldm.core import artifact
from ldm.denoiser.model.network import Network
from ldm.denoiser.model.params import (
    DiffusionParams,
    NetworkParams,
    UNetParams,
    with_kinds,
    with_network_kind,
    with_offset_noise,
)
from ldm.denoiser.model.unet import UNet

KIND = artifact.Kind("unet", (with_kinds, with_network_kind, with_offset_noise))
"""Kind of the artefact that holds a trained network, for every kind of network."""


def build(params: NetworkParams) -> Network:
    """Build a network of the configured kind; its initial weights are drawn from torch's global generator."""
    match params:
        case UNetParams():
            return UNet(params)


def load(directory: Path, device: torch.device) -> tuple[Network, DiffusionParams, artifact.Passport]:
    """Load a trained network, frozen, with its diffusion params and its passport. IntegrityError: missing, corrupt or
    of another kind."""
    passport, tensors = artifact.read(directory, KIND)
    with artifact.fitting(directory):
        diffusion = DiffusionParams.model_validate(passport.config["diffusion"])
        network = build(TypeAdapter(NetworkParams).validate_python(passport.config["network"]))
        network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(device), diffusion, passport
