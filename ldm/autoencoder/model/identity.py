"""Pixels as latents: the autoencoder of a diffusion model in pixel space (Ho et al. 2020)."""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.autoencoder.model.network import IMAGE_CHANNELS, LOG_VARIANCE_RANGE, Autoencoder, Posterior
from ldm.autoencoder.model.params import IdentityParams
from ldm.compute.attention import Shape


class IdentityAutoencoder(Autoencoder):
    """Latents are signals. Images come back bit by bit, except that one channel holds no colour."""

    channels: Tensor
    """The number of latent channels: no weight, but artefacts that encode differently must have different hashes."""

    def __init__(self, params: IdentityParams) -> None:
        super().__init__()
        self.factor = params.factor
        self.register_buffer("channels", torch.tensor(params.latent_channels))
        self._is_grey = params.latent_channels < IMAGE_CHANNELS

    def attention_shapes(self, height: int, width: int) -> list[Shape]:
        """None."""
        return []

    def encode(self, x: Float[Tensor, "b 3 h w"]) -> Posterior:
        """The signal, or the mean of its channels, with the least variance that a posterior may have."""
        mean = x.mean(1, keepdim=True) if self._is_grey else x
        return Posterior(mean, torch.full_like(mean, LOG_VARIANCE_RANGE[0]))

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        """The signal; one channel becomes three equal ones."""
        return z.expand(-1, IMAGE_CHANNELS, -1, -1)
