"""Linear multistep methods on the noise estimate: PNDM and PLMS (Liu et al. 2022)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from ldm.core.config import Section
from ldm.sampling.samplers.rule import Rule, Step, Z, moved, noise_in

_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the last estimates, newest first, that average over an even step."""


class PLMSParams(Section):
    """PLMS: PNDM that begins with one step of improved Euler, the first sampler of Stable Diffusion: second order for
    even steps in time, adds no noise."""

    kind: Literal["plms"]
    """Its name."""

    def rule(self) -> Rule:
        """Its rule."""
        return plms


class PNDMParams(Section):
    """PNDM (Liu et al. 2022, F-PNDM): its first three steps evaluate four times each, later ones once; second order for
    even steps in time, adds no noise."""

    kind: Literal["pndm"]
    """Its name."""

    def rule(self) -> Rule:
        """Its rule."""
        return pndm


def plms(denoise: Callable[[Z, float], Z], z: Z, steps: Sequence[Step], noise_at_step: Callable[[int], Z]) -> Z:
    """PNDM (Liu et al. 2022, equation 12) that begins with one step of improved Euler, as in the code of Rombach et al.
    2022."""
    return _multistep(denoise, z, steps, _improved_euler, 1)


def pndm(denoise: Callable[[Z, float], Z], z: Z, steps: Sequence[Step], noise_at_step: Callable[[int], Z]) -> Z:
    """PNDM (Liu et al. 2022, algorithm 2), which begins with three Runge-Kutta steps."""
    return _multistep(denoise, z, steps, _runge_kutta, 3)


Estimate = Callable[[Z, Step], Z]
"""(average noise of a step from t, (t, another state)) -> noise estimate there."""


def _multistep(
    denoise: Callable[[Z, float], Z],
    z: Z,
    steps: Sequence[Step],
    start: Callable[[Estimate[Z], Z, Step], Z],
    num_starts: int,
) -> Z:
    """Adams-Bashforth averages of the noise estimates, moved along the flow (Liu et al. 2022, equations 9 and 12).

    `start` averages over the first steps instead, which have no past, unless one starts at alpha = 0 or ends at
    sigma = 0, where it could not ask.
    """
    past: list[Z] = []
    for step, (t, s) in enumerate(steps):
        z0_hat = denoise(z, t.time)
        noise_hat = noise_in(z, z0_hat, t)
        past = [noise_hat, *past[:3]]
        if step < num_starts and t.alpha > 0 and s.sigma > 0:
            average = start(partial(_estimate, denoise, z0_hat, noise_hat), noise_hat, (t, s))
        else:
            average, *terms = (w * e for w, e in zip(_ADAMS_BASHFORTH[len(past) - 1], past, strict=True))
            for term in terms:
                average = average + term
        z = moved(z0_hat, noise_hat, average, t, s)
    return z


def _estimate(denoise: Callable[[Z, float], Z], z0_hat: Z, noise_hat: Z, average: Z, way: Step) -> Z:
    t, there = way
    z = moved(z0_hat, noise_hat, average, t, there)
    return noise_in(z, denoise(z, there.time), there)


def _improved_euler(estimate: Estimate[Z], noise_hat: Z, step: Step) -> Z:
    return 0.5 * (noise_hat + estimate(noise_hat, step))


def _runge_kutta(estimate: Estimate[Z], noise_hat: Z, step: Step) -> Z:
    """Liu et al. 2022, equation 13; its middle is half the step in time."""
    t, s = step
    middle = t.halfway(s)
    second = estimate(noise_hat, (t, middle))
    third = estimate(second, (t, middle))
    fourth = estimate(third, (t, s))
    return 1 / 6 * (noise_hat + 2.0 * second + 2.0 * third + fourth)


Params = PLMSParams | PNDMParams
