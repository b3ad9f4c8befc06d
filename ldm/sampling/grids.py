"""The times between which a sampler steps, and the numbers of each step, without torch."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from ldm.denoiser.model.schedules import NUM_TABLE_STEPS, ScheduleName, alpha_sigma

Spacing = Literal["uniform", "trailing", "leading", "quadratic", "log_snr", "karras"]

_LOG_SNR_ENDS = (1 - 1e-3, 1e-3)
"""Times between which a grid follows the log-SNR, which is infinite at time 0 and may be at time 1."""
_KARRAS_RHO = 7
_NUM_BISECTIONS = 60


class State:
    """alpha, sigma and half log-SNR of a schedule at one time, as Python floats: no step waits for a device."""

    def __init__(self, schedule: ScheduleName, time: float) -> None:
        self.schedule: ScheduleName = schedule
        self.time = time
        self.alpha, self.sigma = alpha_sigma(schedule, time)
        self.half_log_snr = level(self.alpha, self.sigma)

    def to(self, time: float) -> "State":
        """The state of this schedule at another time."""
        return State(self.schedule, time)

    def at(self, half_log_snr: float) -> "State":
        """The state of this schedule with a half log-SNR, or the one nearest to it."""
        return self.to(_time_at(self, half_log_snr))

    def halfway(self, other: "State") -> "State":
        """The state of this schedule in the middle between the two times."""
        return self.to((self.time + other.time) / 2)


def level(alpha: float, sigma: float) -> float:
    """Half log-SNR, log(alpha / sigma): inf at data, -inf where no signal is left."""
    log_alpha, log_sigma = (math.log(x) if x > 0 else -math.inf for x in (alpha, sigma))
    return log_alpha - log_sigma


def times(schedule: ScheduleName, num_steps: int, spacing: Spacing, shift: float, first: float = 1.0) -> list[float]:
    """The `num_steps` + 1 times, from `first` down to 0, between which a sampler steps.

    - `uniform` is even in t.
    - `trailing` is that, rounded to whole steps of the training table (Lin et al. 2023, table 2).
    - `leading` begins a step later and ends one step of the table above 0, before 0 (the same table; Ho et al. 2020).
      With less than 1000 steps it never asks at the noisiest time, though its first latent is pure noise. The times of
      Stable Diffusion 1 are one step of the table higher (`steps_offset` 1): for 50 steps 0.982 to 0.002, and here
      0.981 to 0.001.
    - `quadratic` is even in sqrt(t) (Song et al. 2021, DDIM, appendix D.2).
    - `log_snr` has its inner times even in log-SNR (Lu et al. 2022, section 4.1 of DPM-Solver).
    - `karras` has them even in (sigma / alpha)^(1/7) (Karras et al. 2022, equation 5).

    shift: t becomes s t / (1 + (s - 1) t), so more than 1 spends more steps on high noise (Esser et al. 2024, equation
    23); 1 = none.
    """
    assert num_steps > 0 and shift > 0, f"{num_steps} steps, shift {shift}"
    assert 0 < first <= 1, f"first time {first}"
    start = 1.0 if first == 1 else first / (shift - (shift - 1) * first)  # the inverse of the shift below
    even = [start * fraction for fraction in _fractions(num_steps, spacing)]
    if spacing in ("log_snr", "karras"):
        high, low = min(start, _LOG_SNR_ENDS[0]), min(start, _LOG_SNR_ENDS[1])
        top, bottom = State(schedule, high).half_log_snr, State(schedule, low).half_log_snr
        between = _between_levels if spacing == "log_snr" else _between_karras
        even[1:-1] = [State(schedule, 1.0).at(middle).time for middle in between(top, bottom, num_steps)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]


def _fractions(num_steps: int, spacing: Spacing) -> list[float]:
    """Times over the first time, for what does not depend on the schedule."""
    match spacing:
        case "trailing":
            whole = [math.floor(NUM_TABLE_STEPS * (num_steps - i) / num_steps + 0.5) for i in range(num_steps + 1)]
            return [step / NUM_TABLE_STEPS for step in whole]
        case "leading":
            whole = [(num_steps - 1 - i) * (NUM_TABLE_STEPS // num_steps) + 1 for i in range(num_steps)]
            return [*(step / NUM_TABLE_STEPS for step in whole), 0.0]
        case "quadratic":
            return [((num_steps - i) / num_steps) ** 2 for i in range(num_steps + 1)]
        case _:
            return [(num_steps - i) / num_steps for i in range(num_steps + 1)]


def _between_levels(top: float, bottom: float, num_steps: int) -> list[float]:
    return [top + (bottom - top) * i / (num_steps - 1) for i in range(1, num_steps)]


def _between_karras(top: float, bottom: float, num_steps: int) -> list[float]:
    high, low = (math.exp(-level / _KARRAS_RHO) for level in (top, bottom))
    return [-_KARRAS_RHO * math.log(high + (low - high) * i / (num_steps - 1)) for i in range(1, num_steps)]


def _time_at(state: State, half_log_snr: float) -> float:
    """Inverse of the log-SNR of a state's schedule, which falls with time, by bisection; 0 or 1 beyond its range."""
    below, above = 0.0, 1.0
    for _ in range(_NUM_BISECTIONS):
        middle = (below + above) / 2
        if state.to(middle).half_log_snr > half_log_snr:
            below = middle
        else:
            above = middle
    return (below + above) / 2


def steps(schedule: ScheduleName, times: Sequence[float]) -> Iterator[tuple[State, State]]:
    """The states where each step starts and ends."""
    return pairwise([State(schedule, time) for time in times])
