"""Whether a training teaches what its sampler will ask: the error of samples that an objective leads to, without torch.

An objective has two ways to fail. It may give the noise levels at which sampling starts almost no weight, as min-SNR
does to v or x0 where little signal is left; or it may predict what says little of the clean latent there, as eps does
where `cosine` has alpha = 5e-5. Either is invisible in the loss. So the error is followed from the loss to the sample:

1. A prediction is wrong by `RELATIVE_ERROR` of its size at times that get an even share of the weight, and by
   1 / sqrt(share) times that, at most by all of it, at times that get less: as a regression on fewer samples. Weight
   means density of training times x weight of the squared error of the *prediction*, within `NEAR` of a time, over
   what an even spread would put there. It is not the weight of the error of z_0: eps with `linear` gives that 4e-5 at
   t = 1 and is sound, since what a network gets wrong scales with what it puts out.
2. An error of the prediction is an error of z0_hat |q| times as large (`schedules.z0_weights`).
3. The sampler's own steps carry the error on, through the exact denoiser of Gaussian data, to the end.

Data are N(m, m^2) with m from `SCALES`: 1 is a single latent value; 16 is the mean of a 32 x 32 latent (as an
orthonormal coefficient) whose brightness varies by half a deviation, which noise hides last and sampling decides first.

Measured with our samplers on such data, as root mean square of the samples' error over m (a test does it for 288
combinations and finds the number that is computed here): uniform weights and v, x0 or flow 0.01 to 0.05, eps with
linear 0.02 and with scaled_linear 0.01 in 12 steps; logit-normal (0, 1) times with v or flow 0.01 to 0.08; min-SNR with
eps as without, with x0 and scaled_linear 0.09. Above `MAX_ERROR`: min-SNR with v and zero_terminal_snr in 25 steps 0.17
(0.25 if the errors all shrink the prediction), with v or x0 and cosine 0.16 and 0.39, eps with cosine 24. Rounding to
bf16, which alone gives eps with cosine a deviation of 4.6 where 1 is right, is an error of 0.002 in these terms. What
ancestral sampling in many steps forgives is seen: eps with cosine has 0.008 in the 1000 steps of Nichol and Dhariwal
2021, min-SNR with x0 and cosine 0.099 in 250 steps. `RELATIVE_ERROR` and `NEAR` are judgements; with `NEAR` 0.02
logit-normal times in 12 steps would have 0.23, with 0.1 the refused min-SNR with v 0.09.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist

from ldm.denoiser.model import schedules
from ldm.denoiser.model.params import (
    DiffusionParams,
    LogitNormalParams,
    MinSNRParams,
    UniformTimesParams,
    UniformWeightingParams,
)
from ldm.sampling import grids
from ldm.sampling.plan.params import DDIMParams, DPMSolverParams, DrawingParams

RELATIVE_ERROR = 0.01
NEAR = 0.05
SCALES = (1.0, 16.0)
MAX_ERROR = 0.1

_NUM_CELLS = 1000


@dataclass(frozen=True)
class Visit:
    """One time at which a sampler asks the network."""

    time: float
    share: float
    """Loss weight near the time over what an even spread of it would put there."""
    gain: float
    """Error of z0_hat for an error of 1 of the prediction."""
    error: float
    """What this step adds to the error of the samples, as a share of their deviation."""


def visits(diffusion: DiffusionParams, drawing: DrawingParams) -> list[Visit]:
    """Every time at which sampling asks a network that was trained so, for the data of `SCALES` that fare worst."""
    times = grids.times(diffusion.schedule, drawing.num_steps, drawing.spacing, drawing.time_shift)
    shares = _shares(diffusion, times[:-1])
    relative = [RELATIVE_ERROR / math.sqrt(min(share, 1.0)) if share > 0 else 1.0 for share in shares]
    gains = [_gain(diffusion, time) for time in times[:-1]]
    by_scale: list[list[Visit]] = []
    for scale in SCALES:
        carried = _carried(diffusion, drawing, times, scale)
        errors = [min(1.0, error) * factor for error, factor in zip(relative, carried, strict=True)]
        by_scale.append([Visit(*numbers) for numbers in zip(times[:-1], shares, gains, errors, strict=True)])
    return max(by_scale, key=sample_error)


def sample_error(found: Iterable[Visit]) -> float:
    """Error of the samples, as a share of their deviation; the steps' errors are independent."""
    return math.hypot(*(visit.error for visit in found))


def share_before(t: float, diffusion: DiffusionParams) -> float:
    """Share of the training times below t: the inverse of `diffusion.training_times`."""
    if t <= 0 or t >= 1:
        return float(t >= 1)
    u = t / (diffusion.time_shift - (diffusion.time_shift - 1) * t)
    match diffusion.time_sampling:
        case UniformTimesParams():
            return u
        case LogitNormalParams(mean=mean, std=std):
            return NormalDist(mean, std).cdf(math.log(u / (1 - u)))


def weight_before(t: float, diffusion: DiffusionParams) -> float:
    """Share of the loss weight below a time, rounded to thousandths."""
    sums = _weight_sums(diffusion)
    return sums[round(t * _NUM_CELLS)] / sums[-1]


def _weight_sums(diffusion: DiffusionParams) -> list[float]:
    before = [share_before(i / _NUM_CELLS, diffusion) for i in range(_NUM_CELLS + 1)]
    weights = [loss_weight(diffusion, (i + 0.5) / _NUM_CELLS) for i in range(_NUM_CELLS)]
    return [0.0, *accumulate((before[i + 1] - before[i]) * weight for i, weight in enumerate(weights))]


def _shares(diffusion: DiffusionParams, times: Iterable[float]) -> list[float]:
    sums = _weight_sums(diffusion)
    ends = [(max(0, round((t - NEAR) * _NUM_CELLS)), min(_NUM_CELLS, round((t + NEAR) * _NUM_CELLS))) for t in times]
    return [(sums[high] - sums[low]) / sums[-1] / (high - low) * _NUM_CELLS for low, high in ends]


def loss_weight(diffusion: DiffusionParams, t: float) -> float:
    """`diffusion.loss_weight` at one time."""
    match diffusion.loss_weighting:
        case UniformWeightingParams():
            return 1.0
        case MinSNRParams(gamma=gamma):
            alpha, sigma = schedules.alpha_sigma(diffusion.schedule, t)
            return min((alpha / sigma) ** 2, gamma) * _gain(diffusion, t) ** 2


def _gain(diffusion: DiffusionParams, t: float) -> float:
    return abs(schedules.z0_weights(*schedules.alpha_sigma(diffusion.schedule, t), diffusion.prediction)[1])


def _carried(diffusion: DiffusionParams, drawing: DrawingParams, times: list[float], scale: float) -> list[float]:
    """For every step: error of the sample over `scale`, if the prediction there is wrong by all of its size.

    Backwards through z_s = kept z_t + taken (D + ahead (D - D_before)), where D is z0_hat, which the denoiser makes of
    z with the slope `pull`: `of_z` and `of_before` are what the sample gains from z_s and, by the step behind, from D.
    """
    match drawing.sampler:
        case DDIMParams(eta=eta):
            is_second_order = False
        case DPMSolverParams():
            eta, is_second_order = 0.0, True
    steps = list(grids.steps(diffusion.schedule, times))
    h = [math.inf, *(s.half_log_snr - t.half_log_snr for t, s in steps)]
    found, of_z, of_before = list[float](), 1.0, 0.0
    for i in reversed(range(len(steps))):
        t, s = steps[i]
        kept = math.sqrt(max(s.sigma**2 - grids.fresh_noise(t, s, eta) ** 2, 0.0)) / t.sigma
        taken = s.alpha - kept * t.alpha
        ahead = grids.extrapolation(h[i], h[i + 1]) if is_second_order else 0.0
        pull = t.alpha * scale**2 / (t.alpha**2 * scale**2 + t.sigma**2)
        of_d = of_z * taken * (1 + ahead) + of_before
        of_z, of_before = of_z * kept + of_d * pull, -of_z * taken * ahead
        found.append(abs(of_d) * _gain(diffusion, t.time) * _size(diffusion.prediction, t, scale) / scale)
    return found[::-1]


def _size(prediction: schedules.Prediction, t: grids.State, scale: float) -> float:
    """Root mean square of the prediction's target, for data N(m, m^2): their mean square is 2 m^2."""
    square = 2 * scale**2
    squares = {"eps": 1.0, "x0": square, "flow": 1 + square, "v": t.alpha**2 + t.sigma**2 * square}
    return math.sqrt(squares[prediction])
