"""The times between which a sampler steps, and the numbers of each step, without torch."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from ldm.denoiser.model.schedules import ScheduleName, alpha_sigma

Spacing = Literal["uniform", "log_snr"]

_LOG_SNR_ENDS = (1 - 1e-3, 1e-3)
"""Times between which a grid is uniform in log-SNR, which is infinite at time 0 and may be at time 1."""
_NUM_BISECTIONS = 60


class State:
    """alpha, sigma and half log-SNR at one time, as Python floats: no step waits for a device."""

    def __init__(self, schedule: ScheduleName, time: float) -> None:
        self.time = time
        self.alpha, self.sigma = alpha_sigma(schedule, time)
        log_alpha, log_sigma = (math.log(x) if x > 0 else -math.inf for x in (self.alpha, self.sigma))
        self.half_log_snr = log_alpha - log_sigma


def times(schedule: ScheduleName, num_steps: int, spacing: Spacing, shift: float, first: float = 1.0) -> list[float]:
    """The `num_steps` + 1 times, from `first` down to 0, between which a sampler steps.

    `uniform` is even in t; `log_snr` has its inner times even in log-SNR (Lu et al. 2022, section 4.1 of DPM-Solver).
    shift: t becomes s t / (1 + (s - 1) t), so more than 1 spends more steps on high noise (Esser et al. 2024, equation
    23); 1 = none.
    """
    assert num_steps > 0 and shift > 0, f"{num_steps} steps, shift {shift}"
    assert 0 < first <= 1, f"first time {first}"
    start = 1.0 if first == 1 else first / (shift - (shift - 1) * first)  # the inverse of the shift below
    even = [start * (num_steps - i) / num_steps for i in range(num_steps + 1)]
    if spacing == "log_snr":
        high, low = min(start, _LOG_SNR_ENDS[0]), min(start, _LOG_SNR_ENDS[1])
        top, bottom = State(schedule, high).half_log_snr, State(schedule, low).half_log_snr
        levels = [top + (bottom - top) * i / (num_steps - 1) for i in range(1, num_steps)]
        even[1:-1] = [_time_at(schedule, level) for level in levels]
    return [shift * t / (1 + (shift - 1) * t) for t in even]


def _time_at(schedule: ScheduleName, half_log_snr: float) -> float:
    """Inverse of the log-SNR, which falls with time, by bisection."""
    below, above = 0.0, 1.0
    for _ in range(_NUM_BISECTIONS):
        middle = (below + above) / 2
        if State(schedule, middle).half_log_snr > half_log_snr:
            below = middle
        else:
            above = middle
    return (below + above) / 2


def steps(schedule: ScheduleName, times: Sequence[float]) -> Iterator[tuple[State, State]]:
    """The states where each step starts and ends."""
    return pairwise([State(schedule, time) for time in times])
