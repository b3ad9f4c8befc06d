"""Variational diffusion models (Kingma et al. 2021): in continuous time only the ends of a schedule change the loss.

A schedule here is a curve of the log-SNR over time, with any ends; alpha^2 = sigmoid(log-SNR) and sigma^2 = 1 -
alpha^2. Its shape between the ends changes only how much the estimate of the loss varies, so it may be learned.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.analytic.bound import Bound, bits, gaussian_nll, prior
from ldm.analytic.small import fit

Curve = Callable[[Float[Tensor, " b"]], Float[Tensor, " b"]]
"""Log-SNR at times in [0, 1]; it falls."""
Denoised = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z, alpha, sigma of every row) -> z0_hat, as `Mixture.denoised`."""


def even_log_snr(high: float, low: float) -> Curve:
    """The log-SNR falls evenly."""
    return lambda t: high + (low - high) * t


def even_angle(high: float, low: float) -> Curve:
    """atan(sigma / alpha) rises evenly, as in the cosine schedule."""
    start, end = (math.atan(math.exp(-level / 2)) for level in (high, low))
    return lambda t: -2 * torch.tan(start + (end - start) * t).log()


def even_noise(high: float, low: float) -> Curve:
    """sigma / (alpha + sigma) rises evenly, as in the flow schedule."""
    start, end = (1 / (1 + math.exp(level / 2)) for level in (high, low))
    return lambda t: -2 * torch.logit(start + (end - start) * t)


class LearnedCurve(nn.Module):
    """A curve of straight pieces, which falls whatever its parameters are; its ends are fixed."""

    def __init__(self, high: float, low: float, num_pieces: int = 32) -> None:
        super().__init__()
        self.high, self.low = high, low
        self.log_falls = nn.Parameter(torch.zeros(num_pieces, dtype=torch.float64))

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Log-SNR at times in [0, 1]."""
        falls = self.log_falls.softmax(0)
        position = t * len(falls)
        piece = position.detach().long().clamp(0, len(falls) - 1)
        fallen = (falls.cumsum(0) - falls)[piece] + falls[piece] * (position - piece)
        return self.high + (self.low - self.high) * fallen


def diffusion_losses(
    denoised: Denoised, curve: Curve, z0: Float[Tensor, "b d"], noise: Float[Tensor, "b d"], t: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Bits per dimension: minus half the slope of the log-SNR times the squared error of the noise estimate, at one
    time that stands for all (equation 17, with its gamma = -log-SNR)."""
    t = t.detach().requires_grad_()
    log_snr = curve(t)
    (slope,) = torch.autograd.grad(log_snr.sum(), t, create_graph=True)
    alpha, sigma = (torch.sigmoid(sign * log_snr).sqrt()[:, None] for sign in (1, -1))
    z0_hat = denoised(alpha * z0 + sigma * noise, alpha[:, 0], sigma[:, 0])
    return bits(-slope[:, None] / 2 * (alpha / sigma * (z0 - z0_hat)).square())


def even_times(num: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Uniform times that lie evenly: one draw moves them all (appendix I.1)."""
    return (torch.rand(1, dtype=torch.float64, generator=generator) + torch.arange(num) / num) % 1


def bound(denoised: Denoised, curve: Curve, z0: Float[Tensor, "b d"], generator: torch.Generator) -> Bound:
    """The bound of every row, estimated at one time each; its mean over the rows is what counts.

    The decoder takes the least noisy latent over alpha, with the deviation sigma / alpha.
    """
    at_data, at_noise = (curve(torch.tensor([time], dtype=z0.dtype)).detach() for time in (0.0, 1.0))
    first, second = torch.randn(2, *z0.shape, dtype=z0.dtype, generator=generator)
    log_variance = -at_data[:, None].expand_as(z0)
    reconstruction = bits(gaussian_nll(z0, z0 + (log_variance / 2).exp() * first, log_variance))
    alpha, sigma = (float(torch.sigmoid(sign * at_noise).sqrt()) for sign in (1, -1))
    diffusion = diffusion_losses(denoised, curve, z0, second, even_times(len(z0), generator))
    return Bound(prior(z0, alpha, sigma), reconstruction, diffusion.detach())


def learn(
    curve: LearnedCurve,
    denoised: Denoised,
    data: Callable[[int, torch.Generator], Float[Tensor, "b d"]],
    num_steps: int,
    seed: int,
) -> list[float]:
    """Lower the variance of the loss: its mean stays, so its mean square is enough (appendix I.2)."""

    def loss(generator: torch.Generator) -> Tensor:
        z0 = data(256, generator)
        noise = torch.randn(z0.shape, dtype=z0.dtype, generator=generator)
        return diffusion_losses(denoised, curve, z0, noise, even_times(len(z0), generator)).square().mean()

    return fit(curve.parameters(), loss, num_steps, 0.05, seed)
