"""The deep-compression autoencoder (Chen et al. 2024), by diffusers' class: 32 or 64 pixels per latent position."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.autoencoder.model.network import LOG_VARIANCE_RANGE, Autoencoder, Posterior
from ldm.autoencoder.model.params import DCAEParams
from ldm.compute.attention import Shape
from ldm.core.errors import MachineError


class DCAutoencoder(Autoencoder):
    """Residual autoencoder; its posterior has no variance. Parameters have diffusers' names."""

    def __init__(self, params: DCAEParams) -> None:
        super().__init__()
        self.factor = params.factor
        model = _model(params)
        self.encoder, self.decoder = model.encoder, model.decoder

    def attention_shapes(self, height: int, width: int) -> list[Shape]:
        """None: its linear attention needs no kernel."""
        return []

    def encode(self, x: Float[Tensor, "b 3 h w"]) -> Posterior:
        """The latent, with the least variance that a posterior may have."""
        mean = self.encoder(x).float()
        return Posterior(mean, torch.full_like(mean, LOG_VARIANCE_RANGE[0]))

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Signal in about -1..1 from latents on the scale of `encode`."""
        return self.decoder(z).float()


def _model(params: DCAEParams) -> Any:
    try:
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    except ImportError as error:
        fix = 'pip install "ldm[exchange]"'
        raise MachineError("a DC-AE", "package diffusers is not installed", "diffusers", fix) from error
    arguments: dict[str, Any] = params.config
    return AutoencoderDC(**arguments)
