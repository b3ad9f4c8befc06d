"""Numbers of the forward process at one time, without torch: factors of signal and noise of each schedule, and how a
prediction is turned into the clean latent. `ldm.denoiser.model.diffusion` applies them to tensors."""

import math
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

ScheduleName = Literal["flow", "cosine", "linear", "scaled_linear", "zero_terminal_snr", "vp", "ve"]
Prediction = Literal["eps", "v", "x0", "flow", "edm"]
Number = TypeVar("Number", float, "Tensor")

NUM_TABLE_STEPS = 1000
VP_BETAS = (0.1, 20.0)
"""beta(0) and beta(1) of the VP SDE (Song et al. 2021, appendix C)."""
VE_SIGMAS = (0.002, 80.0)
"""sigma_min and sigma_max of the VE SDE, for data of unit deviation (Karras et al. 2022, table 1)."""


def _betas(name: ScheduleName) -> list[float]:
    """Variance that each of the 1000 discrete steps adds.

    linear: Ho et al. 2020, section 4; scaled_linear: Rombach et al. 2022 (linear in sqrt(beta)), the schedule of
    Stable Diffusion; cosine: Nichol and Dhariwal 2021, equation 17, with their cap of 0.999.
    """
    if name == "cosine":
        times = ((k / NUM_TABLE_STEPS + 0.008) / 1.008 for k in range(NUM_TABLE_STEPS + 1))
        signal = [math.cos(time * math.pi / 2) ** 2 for time in times]
        return [min(1 - signal[k + 1] / signal[k], 0.999) for k in range(NUM_TABLE_STEPS)]
    first, last, power = (1e-4, 0.02, 1) if name == "linear" else (0.00085**0.5, 0.012**0.5, 2)
    return [(first + (last - first) * k / (NUM_TABLE_STEPS - 1)) ** power for k in range(NUM_TABLE_STEPS)]


@cache
def angles(name: ScheduleName) -> tuple[float, ...]:
    """atan2(sigma, alpha) of a variance preserving schedule after 0..1000 discrete steps, increasing from 0 (data)."""
    alpha, product = list[float](), 1.0
    for beta in _betas(name):
        product *= 1 - beta
        alpha.append(math.sqrt(product))
    if name == "zero_terminal_snr":  # Lin et al. 2023, algorithm 1: shift the last alpha to 0, scale the first back
        scale = alpha[0] / (alpha[0] - alpha[-1])
        alpha = [(a - alpha[-1]) * scale for a in alpha]
    return (0.0, *map(math.acos, alpha))


def vp_log_alpha(t: Number) -> Number:
    """log alpha(t) of the VP SDE, whose beta(t) is linear: -1/2 of its integral (Song et al. 2021, equation 33)."""
    first, last = VP_BETAS
    return -0.5 * first * t - 0.25 * (last - first) * t**2


def ve_log_variance(t: Number) -> Number:
    """log(1 + sigma(t)^2 / sigma_min^2) of the VE SDE: sigma^2 = sigma_min^2 ((sigma_max / sigma_min)^2t - 1).

    This is the variance that the SDE has added by time t to data at time 0 (Song et al. 2021, equation 29), so time 0
    is data here too, while the shorter sigma_min (sigma_max / sigma_min)^t jumps there. Where sigma is far above
    sigma_min the two are one.
    """
    return 2 * math.log(VE_SIGMAS[1] / VE_SIGMAS[0]) * t


def alpha_sigma(name: ScheduleName, t: float) -> tuple[float, float]:
    """Factors of signal and noise at a time t in [0, 1]; between steps of a table the angle is interpolated."""
    match name:
        case "flow":
            return 1 - t, t
        case "vp":
            return math.exp(vp_log_alpha(t)), math.sqrt(-math.expm1(2 * vp_log_alpha(t)))
        case "ve":
            return 1.0, VE_SIGMAS[0] * math.sqrt(math.expm1(ve_log_variance(t)))
        case _:
            return _alpha_sigma_of_table(name, t)


def _alpha_sigma_of_table(name: ScheduleName, t: float) -> tuple[float, float]:
    below = min(int(t * NUM_TABLE_STEPS), NUM_TABLE_STEPS - 1)
    (low, high), weight = angles(name)[below : below + 2], t * NUM_TABLE_STEPS - below
    angle = low + weight * (high - low) if weight < 0.5 else high - (1 - weight) * (high - low)
    # cos of the float nearest to pi / 2 is 6e-17, but a schedule that ends in pure noise must end at exactly 0.
    return math.cos(angle) if angle < math.pi / 2 else 0.0, math.sin(angle)


def deviation(alpha: Number, sigma: Number) -> Number:
    """Standard deviation of alpha z_0 + sigma noise for latents of unit deviation; 1 where variance is preserved."""
    return (alpha**2 + sigma**2) ** 0.5  # pyright: ignore[reportReturnType] - the type of a power of a float is unknown


def z0_weights(alpha: Number, sigma: Number, prediction: Prediction) -> tuple[Number, Number]:
    """(p, q) with z_0 = p z_t + q prediction: an error of the prediction is |q| times as large in z_0.

    edm: c_skip and c_out of Karras et al. 2022, table 1, with sigma_data = 1, for alpha other than 1 as well. They are
    applied to z / alpha there, whose noise level is sigma / alpha.
    """
    if prediction == "eps":
        return 1 / alpha, -sigma / alpha
    if prediction == "v":
        norm = alpha**2 + sigma**2
        return alpha / norm, -sigma / norm
    if prediction == "flow":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    if prediction == "edm":
        return alpha / (alpha**2 + sigma**2), sigma / deviation(alpha, sigma)
    return 0 * alpha, 0 * alpha + 1
