"""What a denoising network of any kind offers, and how a trained one is opened.

Each kind has a module of its own, beside its params in `params.py`; `build` is the one place that knows them all.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor, nn

from ldm.compute.attention import Shape
from ldm.core import artifact
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.params import DiffusionParams, NetworkParams, UNetParams, with_kinds, with_network_kind

KIND = artifact.Kind("unet", (with_kinds, with_network_kind))
"""Kind of the artefact that holds a trained network, whatever its own kind is."""


class Network(nn.Module, ABC):
    """A function f(z, time, condition) that is trained to denoise. No other code knows which kind it has."""

    latent_shape: tuple[int, int, int]
    """Channels, height and width of the latents it is trained on."""
    attention_shapes: list[Shape]
    """What it asks of attention on latents of this shape."""

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "b c h w"], time: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """Output for latents `z` at `time` (0..1000, fractions allowed) under `condition`; the caller knows what it
        means."""


def build(params: NetworkParams) -> Network:
    """A new network of the configured kind; its weights come from torch's generator."""
    match params:
        case UNetParams():
            from ldm.denoiser.model import unet

            return unet.UNet(params)


def load(directory: Path, device: torch.device) -> tuple[Network, DiffusionParams, artifact.Passport]:
    """A trained network, frozen, and what it was trained to predict. IntegrityError: missing, corrupt or of another
    kind."""
    passport, tensors = artifact.read(directory, KIND)
    with artifact.fitting(directory):
        diffusion = DiffusionParams.model_validate(passport.config["diffusion"])
        network = build(TypeAdapter(NetworkParams).validate_python(passport.config["network"]))
        network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(device), diffusion, passport
