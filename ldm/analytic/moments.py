"""What a rule makes of Gaussian data, without sampling and without torch.

Rules and the denoiser of a Gaussian are linear, so a latent is a sum of noises with known factors, and mean and
variance of the samples are exact.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ldm.sampling.samplers.rule import Rule, Step

Rows = npt.NDArray[np.float64]


def gaussian_denoiser(steps: Sequence[Step], mean: float, variance: float) -> Callable[[Rows, float], Rows]:
    """The exact denoiser of N(mean, variance) for latents as factors of (1, noises...): see `moments`."""
    first = steps[0][0]
    known = {state.time: state for step in steps for state in step}

    def denoise(z: Rows, time: float) -> Rows:
        t = known.get(time) or type(first)(first.schedule, time)
        gain = t.alpha * variance / (t.alpha**2 * variance + t.sigma**2)
        z0_hat = gain * z
        z0_hat[0] += (1 - gain * t.alpha) * mean
        return z0_hat

    return denoise


def moments(
    rule: Rule, steps: Sequence[Step], mean: float, variance: float, num_noises: int = 0
) -> tuple[float, float]:
    """Exact mean and variance of what a rule makes of the exact denoiser of N(mean, variance) and unit noise.

    num_noises: how many a rule may ask for, besides that which it starts from.
    """
    units = np.eye(2 + num_noises)
    final = rule(gaussian_denoiser(steps, mean, variance), units[1], steps, lambda number: units[2 + number])
    return float(final[0]), float((final[1:] ** 2).sum())


def divergence(mean: float, variance: float, of_mean: float, of_variance: float) -> float:
    """Kullback-Leibler divergence of N(mean, variance) from N(of_mean, of_variance), in nats."""
    ratio = variance / of_variance
    return (ratio - 1 - math.log(ratio) + (mean - of_mean) ** 2 / of_variance) / 2


def wasserstein(mean: float, variance: float, of_mean: float, of_variance: float) -> float:
    """Distance of optimal transport between two Gaussians of one dimension."""
    return math.hypot(mean - of_mean, math.sqrt(variance) - math.sqrt(of_variance))
