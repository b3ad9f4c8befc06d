"""How an error of the network reaches the samples, and which drawings a schedule rules out; without torch.

Data are N(m, m^2) with m from `SCALES`: 1 is a single latent value; 16 is the mean of a 32 x 32 latent (as an
orthonormal coefficient) whose brightness varies by half a deviation, which noise hides last and sampling settles first.
The sampler itself carries the error of each time to the end, through the exact denoiser of such data.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ldm.denoiser.model import schedules
from ldm.denoiser.model.schedules import Prediction, ScheduleName
from ldm.sampling import grids, samplers
from ldm.sampling.params import DrawingParams

RELATIVE_ERROR = 0.01
"""Error of a well trained network over the size of its output, a judgement."""
SCALES = (1.0, 16.0)
MAX_ERROR = 0.1
"""Most error of samples over their deviation, a judgement."""
_NO_SIGNAL = 1e-6


@dataclass(frozen=True)
class Refusal:
    """Why a schedule rules a drawing out: its field, what was found, what is expected and why, and what to do."""

    field: str
    found: str
    expected: str
    fix: str


def refusal(schedule: ScheduleName, drawing: DrawingParams) -> Refusal | None:
    """Whether a schedule rules a drawing out, however well the network is trained.

    Either sampling begins in pure noise at a time that still has signal (Lin et al. 2023, section 3.3), or the sampler,
    with times that are not shifted, makes a large error of the samples out of the small one of a well trained network,
    as those in sigma / alpha do where it begins at thousands.
    """
    first = grids.times(schedule, drawing.num_steps, drawing.spacing, drawing.time_shift)[0]
    alpha, sigma = schedules.alpha_sigma(schedule, first)
    if schedules.alpha_sigma(schedule, 1.0)[0] == 0 and alpha > _NO_SIGNAL:
        begins = f"begins in pure noise at t = {first:.3g}, where a latent has {alpha:.2g} of its signal"
        reason = f"trailing or another: schedule {schedule} ends in pure noise at t = 1, and {drawing.spacing} {begins}"
        return Refusal("spacing", drawing.spacing, reason, "set it to trailing")
    plain = drawing.model_copy(update={"time_shift": 1.0})
    error = max(total(RELATIVE_ERROR * part for part in carried(schedule, "edm", plain, scale)[1]) for scale in SCALES)
    if error <= MAX_ERROR:
        return None
    ratio = f"{sigma / alpha:.3g}" if alpha > _NO_SIGNAL else "infinity"
    reason = (
        f"another, such as ddim: with schedule {schedule}, which begins at sigma / alpha = {ratio}, in "
        f"{drawing.num_steps} steps it makes an error of {error:.2g} of the samples' deviation out of one of "
        f"{RELATIVE_ERROR} of the network's output, more than {MAX_ERROR}"
    )
    return Refusal("sampler", drawing.sampler.kind, reason, "take ddim, or more steps")


def carried(
    schedule: ScheduleName, prediction: Prediction, drawing: DrawingParams, scale: float
) -> tuple[list[float], list[float]]:
    """The times at which the sampler asks, and for each the error of the sample over `scale`, if the prediction there
    is wrong by all of its size.

    The sampler itself runs, on one row for each of the times: z0_hat is wrong by 1 at one time in each row, as often as
    the sampler asks then, since a network errs in the same way each time. Denoiser and rules are linear, so the
    constant parts (the mean of the data, the noise) can be left out.
    """
    times = grids.times(schedule, drawing.num_steps, drawing.spacing, drawing.time_shift)
    steps, rule = list(grids.steps(schedule, times)), samplers.build(drawing.sampler)
    # A first pass finds the times; in the second, row i of z0_hat is wrong at the i-th of them.
    asked: dict[float, grids.State] = {}

    def ask(z: npt.NDArray[np.float64], time: float) -> npt.NDArray[np.float64]:
        asked.setdefault(time, grids.State(schedule, time))
        return z

    rule(ask, np.zeros(1), steps, lambda _: np.zeros(1))
    rows = {time: i for i, time in enumerate(asked)}
    nothing = np.zeros(len(rows))

    def denoise(z: npt.NDArray[np.float64], time: float) -> npt.NDArray[np.float64]:
        t = asked[time]
        z0_hat = t.alpha * scale**2 / (t.alpha**2 * scale**2 + t.sigma**2) * z
        z0_hat[rows[time]] += 1
        return z0_hat

    final = rule(denoise, nothing, steps, lambda _: nothing)
    sizes = [gain(schedule, prediction, t.time) * _size(prediction, t, scale) / scale for t in asked.values()]
    return list(asked), [abs(error) * size for error, size in zip(final.tolist(), sizes, strict=True)]


def total(errors: Iterable[float]) -> float:
    """Error of the samples from those of several times, which are independent."""
    return math.hypot(*errors)


def gain(schedule: ScheduleName, prediction: Prediction, t: float) -> float:
    """Error of z0_hat for an error of 1 of the prediction."""
    return abs(schedules.z0_weights(*schedules.alpha_sigma(schedule, t), prediction)[1])


def _size(prediction: Prediction, t: grids.State, scale: float) -> float:
    """Root mean square of the prediction's target, for data N(m, m^2): their mean square is 2 m^2."""
    square = 2 * scale**2
    of_v = t.alpha**2 + t.sigma**2 * square
    squares = {"eps": 1.0, "x0": square, "flow": 1 + square, "v": of_v, "edm": of_v / (t.alpha**2 + t.sigma**2)}
    return math.sqrt(squares[prediction])
