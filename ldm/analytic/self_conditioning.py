"""Self-conditioning (Chen et al. 2023, Analog Bits): a network that also sees its own estimate of one step before."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule, add_noise

Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A network: (z, t, z0_hat of before) -> z0_hat; zeros where there is none of before."""


def losses(
    estimate: Estimate,
    schedule: Schedule,
    z0: Float[Tensor, "b d"],
    noise: Float[Tensor, "b d"],
    t: Float[Tensor, " b"],
    seen: Bool[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Squared error of z0_hat over sigma^2, which for a variance preserving schedule is that of v.

    seen: rows for which a first pass makes the estimate that the second one sees; the paper draws half of them. The
    first pass is not trained through (algorithm 1).
    """
    z = add_noise(schedule, z0, noise, t)
    with torch.no_grad():
        before = torch.where(seen[:, None], estimate(z, t, torch.zeros_like(z)), 0.0)
    return ((estimate(z, t, before) - z0) / schedule.sigma(t)[:, None]).square().mean(1)


def for_one_trajectory(estimate: Estimate) -> Denoiser:
    """A denoiser that hands each answer to the next call: make a new one for every trajectory.

    So samples are a function of noise and times alone. A call at the time of the first one, or above, sees zeros, as
    the first one does.
    """
    first, before = -1.0, torch.zeros(0)

    def denoise(z: Float[Tensor, "b d"], t: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        nonlocal first, before
        if float(t[0]) >= first:
            first, before = float(t[0]), torch.zeros_like(z)
        before = estimate(z, t, before)
        return before

    return denoise


def in_two_passes(estimate: Estimate) -> Denoiser:
    """A denoiser without memory, which asks twice: first with zeros, then with its own answer."""
    return lambda z, t: estimate(z, t, estimate(z, t, torch.zeros_like(z)))
