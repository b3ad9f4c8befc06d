"""Heun's method in sigma / alpha, alone and with the fresh noise of EDM (Karras et al. 2022)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from ldm.core.config import Section
from ldm.sampling.samplers.rule import Rule, Step, Z, moved, noise_in

_MAX_CHURN = math.sqrt(2) - 1


class HeunParams(Section):
    """Heun's method in sigma / alpha (Karras et al. 2022, algorithm 1): second order, two evaluations per step, adds no
    noise."""

    kind: Literal["heun"]
    """Its name."""

    def rule(self) -> Rule:
        """Its rule."""
        return heun


class EDMParams(Section):
    """Heun's method with noise added before each step (Karras et al. 2022, algorithm 2)."""

    kind: Literal["edm"]
    """Its name."""
    churn: float = Field(ge=0, le=1e4)
    """S_churn: before each step sigma / alpha grows by 1 + S_churn / N, at most by sqrt(2); 0 = not at all. N is
    `num_steps`, also for tasks that take a part of the steps, or some of them again."""
    low: float = Field(ge=0, le=1e6)
    """S_tmin: least sigma / alpha at which noise is added."""
    high: float = Field(ge=0, le=1e6)
    """S_tmax: largest sigma / alpha at which noise is added."""
    noise: float = Field(gt=0, le=2)
    """S_noise: deviation of the noise that is added; the paper uses 1 to 1.007."""

    def rule(self, num_steps: int | None) -> Rule:
        """Its rule; num_steps as in `heun`."""
        return partial(heun, churn=self.churn, low=self.low, high=self.high, noise=self.noise, num_steps=num_steps)


def heun(
    denoise: Callable[[Z, float], Z],
    z: Z,
    steps: Sequence[Step],
    noise_at_step: Callable[[int], Z],
    churn: float = 0.0,
    low: float = 0.0,
    high: float = math.inf,
    noise: float = 1.0,
    num_steps: int | None = None,
) -> Z:
    """EDM (Karras et al. 2022, algorithm 2; without churn algorithm 1) in x = z / alpha and S = sigma / alpha.

    A step to sigma = 0 is Euler's, as in the paper, and so is one from alpha = 0, where S is infinite. Churn raises S
    to that of time 1 at most, since the network knows nothing noisier.

    num_steps: N of the paper, the steps of the whole drawing; None = these are all.
    """
    for step, (t, s) in enumerate(steps):
        if churn > 0 and t.alpha > 0 and low <= t.sigma / t.alpha <= high:
            noisier = t.at(t.half_log_snr - math.log1p(min(churn / (num_steps or len(steps)), _MAX_CHURN)))
            kept = noisier.alpha / t.alpha
            added = max(noisier.sigma**2 - (kept * t.sigma) ** 2, 0.0)
            z, t = kept * z + noise * math.sqrt(added) * noise_at_step(step), noisier
        z0_hat = denoise(z, t.time)
        noise_hat = noise_in(z, z0_hat, t)
        z = moved(z0_hat, noise_hat, noise_hat, t, s)
        if s.sigma > 0 and t.alpha > 0:
            there = noise_in(z, denoise(z, s.time), s)
            z = moved(z0_hat, noise_hat, 0.5 * (noise_hat + there), t, s)
    return z


Params = HeunParams | EDMParams
