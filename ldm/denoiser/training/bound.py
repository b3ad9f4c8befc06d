"""The variational bound of the density of latents, from errors that validation measures anyway."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.denoiser.model import schedules
from ldm.denoiser.model.diffusion import Schedule, training_times
from ldm.denoiser.model.params import DiffusionParams


class VariationalBound:
    """Bits per dimension of latents, at most: prior + diffusion + reconstruction (Kingma et al. 2021, VDM, equation
    11), each a density relative to a latent cell of size 1, so that they may be negative.

    One error is known for each of equal slices of the training times. The diffusion loss is half the integral of the
    error of the noise over the log-SNR (equation 17), so an error counts as much as its slice is wide in log-SNR. The
    first slice reaches to data, where the log-SNR is infinite; reconstruction, the entropy of the noise left at its
    end, stands for it. The prior is 0 where the schedule ends in pure noise.
    """

    def __init__(self, params: DiffusionParams, z0: Float[Tensor, "..."], slices: Int64[Tensor, " b"]) -> None:
        """z0: the values of all latents. slices: that of the training times in which each latent is noised, a
        permutation."""
        num, schedule = len(slices), Schedule(params.schedule)
        middles = training_times((slices.double() + 0.5) / num, params)
        log_snr = schedule.log_snr(training_times(torch.arange(num + 1, dtype=torch.float64) / num, params))
        widths = (log_snr[:-1] - log_snr[1:])[slices].where(slices > 0, 0)
        alpha, sigma = schedule.alpha(middles), schedule.sigma(middles)
        of_noise = alpha / sigma * schedules.z0_weights(alpha, sigma, params.prediction)[1]
        self.weights: Float[Tensor, " b"] = widths / 2 * of_noise**2 / math.log(2)
        """Bits of the diffusion loss for a mean squared error of 1 of the prediction, by row; rows add up."""
        self.reconstruction = (math.log(2 * math.pi * math.e) - float(log_snr[1])) / 2 / math.log(2)
        """Bits of what lies below the first slice."""
        alpha, sigma = schedules.alpha_sigma(params.schedule, 1.0)
        kept, noise = (x**2 / (alpha**2 + sigma**2) for x in (alpha, sigma))
        mean_square = float(z0.double().square().mean())
        self.prior = (noise + kept * mean_square - 1 - math.log(noise)) / 2 / math.log(2)
        """Bits by which latents at time 1 differ from the noise that sampling starts from."""

    def terms(self, diffusion: float) -> dict[str, float]:
        """The bound and its terms by name, in bits per dimension, given the diffusion loss."""
        bits = {"prior": self.prior, "diffusion": diffusion, "reconstruction": self.reconstruction}
        return {"bits_per_dimension": sum(bits.values()), **{f"bits_{name}": value for name, value in bits.items()}}
