"""The variational bound of the likelihood, in bits per dimension: its three parts, and the terms that they are made of.

Terms are in nats per entry; `bits` makes them one number per row.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Bound:
    """An upper bound of -log2 p(z_0) per dimension, of every row, in three parts (Kingma et al. 2021, equation 11)."""

    prior: Float[Tensor, " b"]
    """What the noisiest latent still tells of the data (L_T of Ho et al. 2020)."""
    reconstruction: Float[Tensor, " b"]
    """The data, given the least noisy latent (L_0)."""
    diffusion: Float[Tensor, " b"]
    """All steps between them."""

    @property
    def total(self) -> Float[Tensor, " b"]:
        """The bound itself."""
        return self.prior + self.reconstruction + self.diffusion

    def means(self) -> dict[str, float]:
        """Means over the rows: `prior`, `reconstruction`, `diffusion`, and `total`, their sum."""
        parts = {"prior": self.prior, "reconstruction": self.reconstruction, "diffusion": self.diffusion}
        return {name: float(part.mean()) for name, part in {**parts, "total": self.total}.items()}


def bits(nats: Float[Tensor, "b *shape"]) -> Float[Tensor, " b"]:
    """Bits per dimension of every row, from nats per entry."""
    return nats.flatten(1).mean(1) / math.log(2)


def gaussian_kl(mean: Tensor, log_variance: Tensor, of_mean: Tensor, of_log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of one Gaussian from another, in nats per entry."""
    ratio = log_variance - of_log_variance
    return (ratio.exp() - 1 - ratio + (mean - of_mean).square() / of_log_variance.exp()) / 2


def gaussian_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log density of a Gaussian at x, in nats per entry: the decoder of continuous data."""
    return ((x - mean).square() / log_variance.exp() + log_variance + math.log(2 * math.pi)) / 2


def discretised_nll(x: Tensor, mean: Tensor, log_variance: Tensor, width: float = 2 / 255) -> Tensor:
    """-log probability that a Gaussian gives to the cell of x, in nats per entry: the decoder of pixels.

    Cells of this width lie around the values from -1 to 1; the outer two reach to infinity (Ho et al. 2020, equation
    13). Whichever tail of the Gaussian the cell lies in, the difference is taken where it is small and so exact.
    """
    apart, deviation = x - mean, (log_variance / 2).exp()
    upper = torch.where(x >= 1 - width / 2, math.inf, (apart + width / 2) / deviation)
    lower = torch.where(x <= -1 + width / 2, -math.inf, (apart - width / 2) / deviation)
    sign = torch.where(apart > 0, -1.0, 1.0).to(x.dtype)
    inside = sign * (torch.special.ndtr(sign * upper) - torch.special.ndtr(sign * lower))
    return -inside.clamp(min=torch.finfo(x.dtype).tiny).log()


def prior(z0: Float[Tensor, "b *shape"], alpha: float, sigma: float) -> Float[Tensor, " b"]:
    """Bits per dimension by which alpha z_0 + sigma noise differs from standard normal noise."""
    zero = torch.zeros_like(z0)
    return bits(gaussian_kl(alpha * z0, zero + 2 * math.log(sigma), zero, zero))
