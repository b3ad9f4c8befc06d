"""Denoising of images whose noise level is not known.

The noise is in pixels, and the model knows noise in latents. So the level is measured in the image, then carried
through the autoencoder: noise of that level is added to the image's own reconstruction, and the latents say how far it
moves them. The time at which the forward process has that much noise is the time at which the network knows the latent.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import grids

Encode = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b c h2 w2"]]
Decode = Callable[[Float[Tensor, "b c h2 w2"]], Float[Tensor, "b 3 h w"]]

_PATCH_PX = 8
_QUANTILES = (0.15865525, 0.5, 0.84134475)
"""One standard deviation below the median of a Gaussian, the median, and one above it."""


def noise_level(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Standard deviation of the noise in signals in -1..1, each at least 8 x 8.

    In a patch of 8 x 8 without texture, it is the distance from the median to the quantiles of one standard deviation.
    An 8-bit image cuts noise off at black and white, so a quantile at an end is left out: of a white patch only the
    lower one counts. The median over patches and channels ignores those with edges, if they are fewer than half;
    texture in most patches counts as noise. Without a patch that is not cut on both sides the level is 0.
    """
    patches = functional.unfold(x.flatten(0, 1)[:, None], _PATCH_PX, stride=_PATCH_PX)
    low, middle, high = patches.quantile(patches.new_tensor(_QUANTILES), dim=1)
    below = torch.where(low > -1, middle - low, math.nan)
    above = torch.where(high < 1, high - middle, math.nan)
    widths = torch.stack([below, above]).nanmean(0)
    return widths.reshape(len(x), -1).nanmedian(1).values.nan_to_num(0.0)


def latent_noise(
    encode: Encode, decode: Decode, z: Float[Tensor, "b c h w"], noise: Float[Tensor, "b 3 h2 w2"]
) -> Float[Tensor, " b"]:
    """Standard deviation of what noise in a signal adds to its latent, at the images of the latents z."""
    clean = decode(z)
    return (encode(clean + noise) - encode(clean)).flatten(1).square().mean(1).sqrt()


def time_of(schedule: Schedule, ratio: float) -> float:
    """The time at which sigma / alpha is `ratio`, or the nearest that the schedule has."""
    return grids.State(schedule.name, 1.0).at(-math.log(ratio)).time if ratio > 0 else 0.0


def restore(
    denoise: Denoiser,
    schedule: Schedule,
    encode: Encode,
    decode: Decode,
    x: Float[Tensor, "b 3 h w"],
    noise: Float[Tensor, "b 3 h w"],
    level: Float[Tensor, " b"] | None = None,
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Denoised signals, their noise levels, and the times at which the network was asked.

    encode, decode: the autoencoder; what `encode` does to signals outside -1..1, such as cutting them off, is done to
    the noise too. noise: standard normal. level: None = `noise_level`.

    One call of the network gives the posterior mean, the estimate of least squared error. Sampling on from there would
    give one of the images that are likely, with up to twice the error (Kawar et al. 2021, stochastic denoising).
    """
    level, z = noise_level(x) if level is None else level, encode(x)
    ratios = latent_noise(encode, decode, z, level.reshape(-1, 1, 1, 1) * noise)
    t = ratios.new_tensor([time_of(schedule, ratio) for ratio in ratios.tolist()])
    alpha = schedule.alpha(t).reshape(-1, 1, 1, 1)
    return decode(denoise(alpha * z, t)), level, t
