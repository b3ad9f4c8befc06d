"""Samplers that follow the score with fresh noise: the reverse of the forward process as a stochastic differential
equation (Song et al. 2021, score-based SDE), and Langevin steps (Song and Ermon 2019, NCSN)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from ldm.core.config import Section
from ldm.sampling.grids import State
from ldm.sampling.samplers.rule import Rule, Step, Z


class EulerMaruyamaParams(Section):
    """Euler-Maruyama on the reverse SDE (Song et al. 2021): adds noise, needs hundreds of steps."""

    kind: Literal["euler_maruyama"]
    """Its name."""

    def rule(self) -> Rule:
        """Its rule."""
        return euler_maruyama


class PredictorCorrectorParams(Section):
    """Euler-Maruyama with Langevin steps after each of its steps (Song et al. 2021): adds noise."""

    kind: Literal["predictor_corrector"]
    """Its name."""
    snr: float = Field(gt=0, lt=1)
    """Signal-to-noise ratio of a Langevin step; the paper uses 0.16 for VE and 0.05 to 0.2 for VP."""
    num_corrections: int = Field(ge=1, le=100)
    """Langevin steps, an evaluation each, after each step."""

    def rule(self) -> Rule:
        """Its rule."""
        return partial(predictor_corrector, snr=self.snr, num_corrections=self.num_corrections)


class AnnealedLangevinParams(Section):
    """Langevin steps alone, at less and less noise (Song and Ermon 2019): adds noise, needs many evaluations."""

    kind: Literal["annealed_langevin"]
    """Its name."""
    snr: float = Field(gt=0, lt=1)
    """Signal-to-noise ratio of a Langevin step, as of `predictor_corrector`."""
    num_repeats: int = Field(ge=1, le=1000)
    """Langevin steps, an evaluation each, at every time."""

    def rule(self) -> Rule:
        """Its rule."""
        return partial(annealed_langevin, snr=self.snr, num_repeats=self.num_repeats)


def euler_maruyama(
    denoise: Callable[[Z, float], Z], z: Z, steps: Sequence[Step], noise_at_step: Callable[[int], Z]
) -> Z:
    """The predictor of `predictor_corrector` alone."""
    return predictor_corrector(denoise, z, steps, noise_at_step, 0.0, 0)


def predictor_corrector(
    denoise: Callable[[Z, float], Z],
    z: Z,
    steps: Sequence[Step],
    noise_at_step: Callable[[int], Z],
    snr: float,
    num_corrections: int,
) -> Z:
    """Predictor-corrector sampling (Song et al. 2021, algorithms 2 and 3) for any alpha and sigma: VP where alpha^2 +
    sigma^2 = 1, VE where alpha = 1.

    The predictor is Euler-Maruyama with drift and noise of the forward chain ("reverse diffusion", equation 46): with
    r = alpha_t / alpha_s and g^2 = sigma_t^2 - r^2 sigma_s^2, z_s = z_t + (1 - r) z_t + g^2 score + g noise. The score
    is -(z - alpha z0_hat) / sigma^2. The last step, to sigma = 0, is z0_hat: it denoises and adds nothing.

    The corrector is z + epsilon score + sqrt(2 epsilon) noise with epsilon = 2 (snr sigma)^2. Algorithms 4 and 5 have
    the measured |noise| / |score| of a batch for sigma, which is its expectation for high noise. So each sample depends
    on itself alone, and the rule stays linear.
    """
    for step, (t, s) in enumerate(steps):
        z0_hat, first = denoise(z, t.time), step * (1 + num_corrections)
        if s.sigma == 0:
            z = s.alpha * z0_hat
            continue
        kept = t.alpha / s.alpha
        added = t.sigma**2 - (kept * s.sigma) ** 2
        z = (2 - kept) * z - added / t.sigma**2 * (z - t.alpha * z0_hat) + math.sqrt(added) * noise_at_step(first)
        for number in range(first + 1, first + 1 + num_corrections):
            z = _langevin(denoise, z, s, snr, noise_at_step(number))
    return z


def annealed_langevin(
    denoise: Callable[[Z, float], Z],
    z: Z,
    steps: Sequence[Step],
    noise_at_step: Callable[[int], Z],
    snr: float,
    num_repeats: int,
) -> Z:
    """NCSN (Song and Ermon 2019, algorithm 1) in x = z / alpha: x stays as it is from one time to the next.

    Its step size is proportional to sigma^2, as that of the corrector in `predictor_corrector`. From alpha = 0, where x
    is infinite, z stays. The last step, to sigma = 0, is z0_hat (Song and Ermon 2020, section 3.3).
    """
    for step, (t, s) in enumerate(steps):
        for number in range(step * num_repeats, (step + 1) * num_repeats):
            z = _langevin(denoise, z, t, snr, noise_at_step(number))
        if s.sigma == 0:
            z = s.alpha * denoise(z, t.time)
        elif t.alpha > 0:
            z = s.alpha / t.alpha * z
    return z


def _langevin(denoise: Callable[[Z, float], Z], z: Z, t: State, snr: float, noise: Z) -> Z:
    """z + epsilon score + sqrt(2 epsilon) noise with epsilon = 2 (snr sigma)^2."""
    return z - 2 * snr**2 * (z - t.alpha * denoise(z, t.time)) + 2 * snr * t.sigma * noise


Params = EulerMaruyamaParams | PredictorCorrectorParams | AnnealedLangevinParams
