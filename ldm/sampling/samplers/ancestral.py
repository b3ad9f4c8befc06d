"""Samplers that draw from the posterior of the forward chain: DDPM, and DDIM, which Euler's methods are too."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from ldm.core.config import Section
from ldm.sampling.grids import State
from ldm.sampling.samplers.rule import Rule, Step, Z


class DDPMParams(Section):
    """DDPM (Ho et al. 2020): ancestral sampling with a fixed variance."""

    kind: Literal["ddpm"]
    """Its name."""
    variance: float = Field(ge=0, le=1)
    """Variance of a step: 0 = that of the posterior for one clean latent (beta-tilde, "small"), 1 = that of the forward
    step (beta, "large"); between them in the logarithm."""

    def rule(self) -> Rule:
        """Its rule."""
        return partial(ddpm, variance=self.variance)


def ddpm(
    denoise: Callable[[Z, float], Z],
    z: Z,
    steps: Sequence[Step],
    noise_at_step: Callable[[int], Z],
    variance: float | Callable[[Z, Step, Z], Z] = 0.0,
) -> Z:
    """DDPM (Ho et al. 2020, algorithm 2 and equation 7) for any alpha and sigma (Kingma et al. 2021,
    appendix A).

    With r = alpha_t / alpha_s, the forward step from s to t adds the variance beta = sigma_t^2 - r^2 sigma_s^2, and
    the posterior has beta-tilde = beta sigma_s^2 / sigma_t^2. variance: exponent v of beta^v beta-tilde^(1 - v)
    (Nichol and Dhariwal 2021, equation 15); or what a network has learned of it, an exponent per entry, as a function
    (z_t, step, standard normal noise) -> noise of that variance. The step to sigma = 0 adds no noise.
    """
    for step, (t, s) in enumerate(steps):
        z0_hat = denoise(z, t.time)
        kept = t.alpha / s.alpha
        beta = forward_variance(t, s)
        mean = kept * (s.sigma / t.sigma) ** 2 * z + s.alpha * beta / t.sigma**2 * z0_hat
        if s.sigma == 0:
            z = mean
        elif callable(variance):
            z = mean + variance(z, (t, s), noise_at_step(step))
        else:
            z = mean + math.sqrt(beta) * (s.sigma / t.sigma) ** (1 - variance) * noise_at_step(step)
    return z


def forward_variance(t: State, s: State) -> float:
    """beta: variance that the forward process adds from s to t."""
    return max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0.0)


class DDIMParams(Section):
    """DDIM (Song et al. 2021): first order, may add noise."""

    kind: Literal["ddim"]
    """Its name."""
    eta: float = Field(ge=0, le=1)
    """Noise that a step adds: 0 = none, 1 = ancestral sampling."""

    def rule(self) -> Rule:
        """Its rule."""
        return partial(ddim, eta=self.eta)


def ddim(
    denoise: Callable[[Z, float], Z], z: Z, steps: Sequence[Step], noise_at_step: Callable[[int], Z], eta: float = 0.0
) -> Z:
    """DDIM (Song et al. 2021, equation 12) for any alpha and sigma. eta: 0 is deterministic, 1 is ancestral sampling
    (DDPM; Ho et al. 2020, equation 7).

    Rising times and eta 0 are DDIM inversion, from data to noise. At sigma = 0 there is no noise to keep.
    """
    for step, (t, s) in enumerate(steps):
        z0_hat = denoise(z, t.time)
        if t.sigma == 0:
            z = s.alpha * z0_hat
            continue
        fresh = 0.0
        if eta > 0:  # times the deviation of z_s given z_t and z_0
            fresh = eta * math.sqrt(max(s.sigma**2 * (1 - (t.alpha / s.alpha * s.sigma / t.sigma) ** 2), 0.0))
        kept = math.sqrt(max(s.sigma**2 - fresh**2, 0.0))
        z = s.alpha * z0_hat + kept / t.sigma * (z - t.alpha * z0_hat)
        if eta > 0:
            z = z + fresh * noise_at_step(step)
    return z


class EulerParams(Section):
    """Euler's method in sigma / alpha (Karras et al. 2022): first order, adds no noise; the same as DDIM with eta 0
    (Song et al. 2021, section 4.3)."""

    kind: Literal["euler"]
    """Its name."""

    def rule(self) -> Rule:
        """Its rule."""
        return ddim


class EulerAncestralParams(Section):
    """Euler's method to less noise than a step ends with, and fresh noise for the rest (k-diffusion's Euler ancestral);
    the same as DDIM with this eta."""

    kind: Literal["euler_ancestral"]
    """Its name."""
    eta: float = Field(ge=0, le=1)
    """Fresh noise: 0 = none, 1 = as much as DDPM adds."""

    def rule(self) -> Rule:
        """Its rule."""
        return partial(ddim, eta=self.eta)


Params = DDPMParams | DDIMParams | EulerParams | EulerAncestralParams
