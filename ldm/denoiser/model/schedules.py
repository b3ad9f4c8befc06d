"""Numbers of the forward process at one time, without torch: factors of signal and noise of each schedule, and how a
prediction is turned into the clean latent. `ldm.denoiser.model.diffusion` applies them to tensors."""

import math
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

ScheduleName = Literal["flow", "cosine", "linear", "scaled_linear", "zero_terminal_snr"]
Prediction = Literal["eps", "v", "x0", "flow"]
Number = TypeVar("Number", float, "Tensor")

NUM_TABLE_STEPS = 1000


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


def alpha_sigma(name: ScheduleName, t: float) -> tuple[float, float]:
    """Factors of signal and noise at a time t in [0, 1]; between steps of a table the angle is interpolated."""
    if name == "flow":
        return 1 - t, t
    below = min(int(t * NUM_TABLE_STEPS), NUM_TABLE_STEPS - 1)
    (low, high), weight = angles(name)[below : below + 2], t * NUM_TABLE_STEPS - below
    angle = low + weight * (high - low) if weight < 0.5 else high - (1 - weight) * (high - low)
    # cos of the float nearest to pi / 2 is 6e-17, but a schedule that ends in pure noise must end at exactly 0.
    return math.cos(angle) if angle < math.pi / 2 else 0.0, math.sin(angle)


def z0_weights(alpha: Number, sigma: Number, prediction: Prediction) -> tuple[Number, Number]:
    """(p, q) with z_0 = p z_t + q prediction: an error of the prediction is |q| times as large in z_0."""
    if prediction == "eps":
        return 1 / alpha, -sigma / alpha
    if prediction == "v":
        norm = alpha**2 + sigma**2
        return alpha / norm, -sigma / norm
    if prediction == "flow":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    return 0 * alpha, 0 * alpha + 1
