"""How unusual a latent is to a denoiser, and how well such scores tell two sets apart."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule, add_noise


def reconstruction_error(
    denoise: Denoiser,
    schedule: Schedule,
    z0: Float[Tensor, "b c h w"],
    times: Sequence[float],
    noises: Float[Tensor, "n b c h w"],
) -> Float[Tensor, " b"]:
    """Mean squared error of latents that were noised to each of the times with each of the noises, and denoised by one
    call (Graham et al. 2023, denoising diffusion models for out-of-distribution detection, whose error this averages
    over times).

    Noise hides what the network then fills in by what it knows; an unusual latent comes back as a usual one.
    """
    errors: list[Tensor] = []
    for time in times:
        t = z0.new_full((len(z0),), time)
        for noise in noises:
            z0_hat = denoise(add_noise(schedule, z0, noise, t), t)
            errors.append((z0_hat - z0).square().flatten(1).mean(1))
    return torch.stack(errors).mean(0)


class Area(NamedTuple):
    """Area under a ROC curve, and its interval of 95 %."""

    value: float
    low: float
    high: float


def roc_area(usual: Float[Tensor, " n"], unusual: Float[Tensor, " m"]) -> Area:
    """How likely an unusual one has a higher score than a usual one; equal scores count half. Two of each at least.

    The interval is normal, with the variance of DeLong et al. 1988 (equation 5), and cut to 0..1.
    """
    wins = torch.heaviside(unusual.double()[:, None] - usual.double(), torch.tensor(0.5, dtype=torch.float64))
    value = float(wins.mean())
    variance = float(wins.mean(1).var() / len(unusual) + wins.mean(0).var() / len(usual))
    margin = 1.96 * math.sqrt(variance)
    return Area(value, max(value - margin, 0.0), min(value + margin, 1.0))
