"""UniPC (Zhao et al. 2023): a multistep predictor, and a corrector that costs no evaluation."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from ldm.core.config import Section
from ldm.sampling.grids import State
from ldm.sampling.samplers.rule import Rule, Step, Z


class UniPCParams(Section):
    """UniPC (Zhao et al. 2023) on z0_hat with B_2(h): of the given order and one more, adds no noise."""

    kind: Literal["unipc"]
    """Its name."""
    order: int = Field(ge=2, le=3)
    """Evaluations that the predictor of a step looks back on; 3 is for samples with no or little guidance."""

    def rule(self) -> Rule:
        """Its rule."""
        return partial(unipc, order=self.order)


def unipc(
    denoise: Callable[[Z, float], Z],
    z: Z,
    steps: Sequence[Step],
    noise_at_step: Callable[[int], Z],
    order: int = 2,
) -> Z:
    """UniPC-p (Zhao et al. 2023, algorithms 1 and 2, prediction of z_0, B_2) for any alpha and sigma.

    A step predicts z_s from the last z0_hat. The next one asks at z_s, then makes that step once more with this answer
    among its points, and goes on from there; the answer is not asked again. Steps look back as far as there is a past,
    and less before an end at sigma = 0, the step to which takes z0_hat alone. After a start at alpha = 0 the answer
    there is infinitely far, and no longer a point.
    """
    past: list[tuple[float, Z]] = []
    points, start, z_start = past, steps[0][0], z
    for step, (t, s) in enumerate(steps):
        z0_hat = denoise(z, t.time)
        if step > 0 and math.isfinite(start.half_log_snr):
            z = _step(z_start, start, t, [*points, (t.half_log_snr, z0_hat)])
        past = [(t.half_log_snr, z0_hat), *(point for point in past[:2] if math.isfinite(point[0]))]
        points = past[: min(order, len(steps) - step) if steps[-1][1].sigma == 0 else order]
        start, z_start = t, z
        z = _step(z, t, s, points)
    return z


def _step(z: Z, t: State, s: State, points: Sequence[tuple[float, Z]]) -> Z:
    """z_s by the average of z0_hat over the step, drawn through its points (half log-SNR, z0_hat), that at t first."""
    (here, z0_hat), *others = points
    h = s.half_log_snr - here
    average = z0_hat
    for weight, (_, other) in zip(_weights([(place - here) / h for place, _ in others], h), others, strict=True):
        average = average + weight * (other - z0_hat)
    return s.sigma / t.sigma * z + (s.alpha - t.alpha * s.sigma / t.sigma) * average


def _weights(places: Sequence[float], h: float) -> list[float]:
    """Weights w for which the sum of w (f(x) - f(0)) over the places x is the average of f - f(0) from 0 to 1.

    The average is that of the exact solution, with density proportional to exp(h x), and holds for polynomials through
    all places (Zhao et al. 2023, theorem 3.1). One place alone has the weight 1 / 2x, as B_2 allows.
    """
    if len(places) < 2:
        return [0.5 / x for x in places]
    averages = [1.0]  # of x^k, by integration in parts
    for k in range(1, len(places) + 1):
        averages.append(-1 / math.expm1(-h) - k / h * averages[-1])
    powers = np.vander(places, len(places) + 1, increasing=True)[:, 1:]
    return np.linalg.solve(powers.T, averages[1:]).tolist()


Params = UniPCParams
