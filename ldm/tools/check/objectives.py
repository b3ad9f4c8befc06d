"""Whether a training teaches what its sampler will ask: the error that an objective leaves in samples, without torch.

An objective has two ways to fail. It may give the noise levels at which sampling starts almost no weight, as min-SNR
does to v or x0 where little signal is left. Or its prediction may say little about the clean latent there, as eps does
where `cosine` has alpha = 5e-5. The loss shows neither. So the error is followed from the loss to the sample:

1. A prediction is wrong by `RELATIVE_ERROR` of its size at times that get an even share of the weight, and by
   1 / sqrt(share) times that, at most by all of it, at times that get less, like a regression on fewer samples. Weight
   means density of training times x weight of the squared error of the *prediction*, within `NEAR` of a time, over
   what an even spread would put there. It is not the weight of the error of z_0: eps with `linear` gives that 4e-5 at
   t = 1 and is sound, since a network's error scales with its output.
2. An error of the prediction is an error of z0_hat |q| times as large (`schedules.z0_weights`).
3. The sampler itself carries the error to the end, through the exact denoiser of Gaussian data N(m, m^2) with m from
   `SCALES` (`ldm.sampling.samplers.propagation`).

Measured with our samplers on such data, as root mean square of the samples' error over m (a test does so for 336
combinations and compares it with the number computed here): uniform weights and v, x0 or flow 0.01 to 0.05, eps with
linear 0.02 and with scaled_linear 0.01 in 12 steps; logit-normal (0, 1) times with v or flow 0.01 to 0.08; min-SNR with
eps as without, with x0 and scaled_linear 0.09. Above `MAX_ERROR`: min-SNR with v and zero_terminal_snr in 25 steps 0.17
(0.25 if the errors all shrink the prediction), with v or x0 and cosine 0.16 and 0.39, eps with cosine 24. Rounding to
bf16, which alone gives eps with cosine a deviation of 4.6 where 1 is right, is an error of 0.002 in these terms.
Ancestral sampling in many steps forgives more, and this shows: eps with cosine has 0.008 in the 1000 steps of Nichol
and Dhariwal 2021, min-SNR with x0 and cosine 0.099 in 250 steps. Karras et al. 2022 (ve, edm, log-normal times, Heun in
18 steps) have 0.04 with the mean -0.5 that their -1.2 is for data of deviation 1, and 0.10 with -1.2.
`RELATIVE_ERROR` and `NEAR` are judgements; with `NEAR` 0.02 logit-normal times in 12 steps would have 0.23, with 0.1
the refused min-SNR with v 0.09.
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
    LogNormalParams,
    MinSNRParams,
    P2Params,
    UniformTimesParams,
    UniformWeightingParams,
)
from ldm.sampling import grids
from ldm.sampling.params import DrawingParams
from ldm.sampling.samplers.propagation import RELATIVE_ERROR, SCALES, carried, gain, total

NEAR = 0.05

_NUM_CELLS = 1000


@dataclass(frozen=True)
class Visit:
    """One time at which a sampler asks the network, once or more often."""

    time: float
    share: float
    """Loss weight near the time, relative to an even spread over all times."""
    gain: float
    """Error of z0_hat for an error of 1 of the prediction."""
    error: float
    """What this time adds to the error of the samples, relative to their standard deviation."""


def visits(diffusion: DiffusionParams, drawing: DrawingParams) -> list[Visit]:
    """Every time at which sampling asks a network trained with this objective, for the worst of `SCALES`."""
    by_scale: list[list[Visit]] = []
    for scale in SCALES:
        times, reaching = carried(diffusion.schedule, diffusion.prediction, drawing, scale)
        shares = _shares(diffusion, times)
        relative = [RELATIVE_ERROR / math.sqrt(min(share, 1.0)) if share > 0 else 1.0 for share in shares]
        gains = [gain(diffusion.schedule, diffusion.prediction, time) for time in times]
        errors = [min(1.0, error) * factor for error, factor in zip(relative, reaching, strict=True)]
        by_scale.append([Visit(*numbers) for numbers in zip(times, shares, gains, errors, strict=True)])
    return max(by_scale, key=sample_error)


def sample_error(steps: Iterable[Visit]) -> float:
    """Error of the samples, relative to their standard deviation; the errors of different times are independent."""
    return total(visit.error for visit in steps)


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
        case LogNormalParams(mean=mean, std=std):
            return NormalDist(mean, std).cdf(-grids.State(diffusion.schedule, u).half_log_snr)


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
            return min((alpha / sigma) ** 2, gamma) * gain(diffusion.schedule, diffusion.prediction, t) ** 2
        case P2Params(k=k, gamma=gamma):
            alpha, sigma = schedules.alpha_sigma(diffusion.schedule, t)
            of_noise = alpha * gain(diffusion.schedule, diffusion.prediction, t) / sigma
            return (sigma**2 / (k * sigma**2 + alpha**2)) ** gamma * of_noise**2
