"""The processes of score-based models in continuous time (Song et al. 2021, score-based SDE), and their steps.

The pipeline's schedules are a closed set of names; a sampler needs only the two factors at a time. So a process here is
a pair of functions, and every rule follows it as it follows a schedule.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ldm.sampling.grids import State, level
from ldm.sampling.samplers.rule import Step


@dataclass(frozen=True)
class Process:
    """z_t = alpha(t) z_0 + sigma(t) noise, for times in [0, 1]; alpha / sigma falls from inf at time 0."""

    alpha: Callable[[float], float]
    sigma: Callable[[float], float]

    def state(self, time: float) -> State:
        """Factors and half log-SNR at a time."""
        return _ProcessState(self, time)

    def steps(self, times: Sequence[float]) -> list[Step]:
        """The states where each step starts and ends."""
        return list(pairwise([self.state(time) for time in times]))

    def even_levels(self, num_steps: int, first: float, last: float) -> list[float]:
        """Times even in log-SNR, `num_steps` of them from `first` to `last`, and then 0."""
        top, bottom = self.state(first).half_log_snr, self.state(last).half_log_snr
        inner = [top + (bottom - top) * i / (num_steps - 1) for i in range(1, num_steps - 1)]
        return [first, *(self.state(1.0).at(half).time for half in inner), last, 0.0]


class _ProcessState(State):
    def __init__(self, process: Process, time: float) -> None:
        self.process, self.time = process, time
        self.alpha, self.sigma = process.alpha(time), process.sigma(time)
        self.half_log_snr = level(self.alpha, self.sigma)

    def to(self, time: float) -> State:
        return _ProcessState(self.process, time)


def _noise_added(time: float, low: float, high: float) -> float:
    """Integral of beta, which rises linearly from `low` to `high`."""
    return low * time + (high - low) * time**2 / 2


def variance_preserving(low: float = 0.1, high: float = 20.0) -> Process:
    """VP (equation 33): dz = -beta z / 2 dt + sqrt(beta) dw. alpha^2 + sigma^2 = 1."""
    return Process(
        lambda time: math.exp(-_noise_added(time, low, high) / 2),
        lambda time: math.sqrt(-math.expm1(-_noise_added(time, low, high))),
    )


def sub_variance_preserving(low: float = 0.1, high: float = 20.0) -> Process:
    """Sub-VP (equation 34): the drift of VP, and noise so that sigma is the square of VP's."""
    return Process(
        lambda time: math.exp(-_noise_added(time, low, high) / 2),
        lambda time: -math.expm1(-_noise_added(time, low, high)),
    )


def variance_exploding(low: float = 0.01, high: float = 10.0) -> Process:
    """VE (equations 30 and 31): alpha = 1, sigma^2 = low^2 ((high / low)^2t - 1). Sampling starts at sigma(1) noise."""
    return Process(lambda _: 1.0, lambda time: low * math.sqrt(math.expm1(2 * time * math.log(high / low))))
