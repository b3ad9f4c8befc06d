"""The forward process `z_t = alpha(t) z_0 + sigma(t) noise`, what a network may predict of it, and the loss.

Time t is in [0, 1]: 0 is data, 1 is (almost) pure noise. Every schedule is a pair of functions alpha and sigma. Every
prediction is a linear combination of z_0 and noise whose weights follow from alpha and sigma. Samplers and guidance
only see a `Denoiser`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.denoiser.model import schedules
from ldm.denoiser.model.condition import Condition, Prepared
from ldm.denoiser.model.params import (
    DiffusionParams,
    LogitNormalParams,
    LogNormalParams,
    MinSNRParams,
    P2Params,
    UniformTimesParams,
    UniformWeightingParams,
)
from ldm.denoiser.model.schedules import NUM_TABLE_STEPS, Prediction, ScheduleName

Denoiser = Callable[[Float[Tensor, "b c h w"], Float[Tensor, " b"]], Float[Tensor, "b c h w"]]
_NUM_BISECTIONS = 60
TIME_MARGIN = 2**-24
"""Least distance of training times from 0 and 1: the distance between 1 and the next smaller float32."""


@cache
def _angles(name: ScheduleName, device: torch.device) -> Float[Tensor, " steps+1"]:
    return torch.tensor(schedules.angles(name), dtype=torch.float64, device=device)


def _column(x: Float[Tensor, " b"], like: Tensor) -> Tensor:
    """Reshape one number per row so that it broadcasts over `like`, in the dtype of `like`."""
    return x.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Schedule:
    """alpha(t) and sigma(t) of one forward process.

    `flow` is alpha = 1 - t, sigma = t (Lipman et al. 2023, Liu et al. 2023). `vp` and `ve` are the variance preserving
    and the variance exploding SDE (Song et al. 2021), whose formulas are in `schedules`. The others are variance
    preserving and given as tables of 1000 steps: t = k / 1000 is the state after k steps, so t = 0 is data. Between
    steps, the angle atan2(sigma, alpha) is interpolated. This keeps alpha^2 + sigma^2 = 1 and, unlike the log-SNR, the
    angle is finite at both ends.
    """

    name: ScheduleName

    def _angle(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        position = t.double().clamp(0, 1) * NUM_TABLE_STEPS
        below = position.floor().clamp(max=NUM_TABLE_STEPS - 1)
        angles = _angles(self.name, t.device)
        return torch.lerp(angles[below.long()], angles[below.long() + 1], position - below)

    def alpha(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Factor of the signal at times t in [0, 1]."""
        match self.name:
            case "flow":
                return 1 - t
            case "vp":
                return schedules.vp_log_alpha(t.double()).exp().to(t.dtype)
            case "ve":
                return torch.ones_like(t)
            case _:
                angle = self._angle(t)
                # Exactly 0 where no signal is left, as in `schedules.alpha_sigma`.
                return torch.where(angle < math.pi / 2, angle.cos(), 0.0).to(t.dtype)

    def sigma(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Factor of the noise at times t in [0, 1]."""
        match self.name:
            case "flow":
                return t
            case "vp":
                return (-torch.expm1(2 * schedules.vp_log_alpha(t.double()))).sqrt().to(t.dtype)
            case "ve":
                variance = torch.expm1(schedules.ve_log_variance(t.double()))
                return (schedules.VE_SIGMAS[0] * variance.sqrt()).to(t.dtype)
            case _:
                return torch.sin(self._angle(t)).to(t.dtype)

    def log_snr(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """log(alpha^2 / sigma^2): +inf at t = 0, -inf where no signal is left."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def condition(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The network's time input for time t: the table index k - 1 = 1000 t - 1 for tables, else 1000 t.

        These are the timesteps of diffusers' flow-matching and DDPM schedulers, so exported weights work there too. For
        `ve` 1000 t is log sigma, but for an offset and a factor, once sigma is above sigma_min. So is the time input
        log(sigma) / 4 of Karras et al. 2022, which spans 3 units where this spans the 1000 that networks tell apart.
        """
        return NUM_TABLE_STEPS * t if self.name in ("flow", "vp", "ve") else NUM_TABLE_STEPS * t - 1

    def time_at(self, half_log_snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The times in [0, 1] with this log(alpha / sigma), which falls with time, by bisection; the nearer end beyond
        its range."""
        below, above = torch.zeros_like(half_log_snr), torch.ones_like(half_log_snr)
        for _ in range(_NUM_BISECTIONS):
            middle = (below + above) / 2
            is_earlier = self.log_snr(middle) / 2 > half_log_snr
            below, above = torch.where(is_earlier, middle, below), torch.where(is_earlier, above, middle)
        return (below + above) / 2


def add_noise(
    schedule: Schedule, z0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Noisy latents z_t = alpha(t) z_0 + sigma(t) noise."""
    return _column(schedule.alpha(t), z0) * z0 + _column(schedule.sigma(t), z0) * noise


def target(
    schedule: Schedule,
    prediction: Prediction,
    z0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """The output that the network should have at time t.

    eps: the noise (Ho et al. 2020, equation 14); x0: the clean latent; v: alpha noise - sigma z_0 (Salimans and Ho
    2022, appendix D); flow: noise - z_0, the velocity dz_t/dt of the `flow` schedule (Liu et al. 2023, equation 1);
    edm: (sigma z_0 - alpha noise) / sqrt(alpha^2 + sigma^2) (Karras et al. 2022, equation 8), which is -v where
    variance is preserved.
    """
    if prediction == "edm":
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        size = schedules.deviation(alpha, sigma)
        return _column(sigma / size, z0) * z0 - _column(alpha / size, z0) * noise
    if prediction == "v":
        return _column(schedule.alpha(t), z0) * noise - _column(schedule.sigma(t), z0) * z0
    return {"eps": noise, "x0": z0, "flow": noise - z0}[prediction]


def _z0_weights(
    schedule: Schedule, prediction: Prediction, t: Float[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """(p, q) with z_0 = p z_t + q prediction: solves `add_noise` and `target` together for z_0."""
    return schedules.z0_weights(schedule.alpha(t), schedule.sigma(t), prediction)


def z0_from_prediction(
    schedule: Schedule,
    prediction: Prediction,
    z: Float[Tensor, "b c h w"],
    predicted: Float[Tensor, "b c h w"],
    t: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """The clean latent that follows from a prediction at (z, t)."""
    of_z, of_prediction = _z0_weights(schedule, prediction, t)
    return _column(of_z, z) * z + _column(of_prediction, z) * predicted


def network_input(
    schedule: Schedule, prediction: Prediction, z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """What the network sees of z_t. edm scales it to unit deviation: c_in of Karras et al. 2022, table 1."""
    if prediction != "edm":
        return z
    return _column(1 / schedules.deviation(schedule.alpha(t), schedule.sigma(t)), z) * z


def loss_weight(schedule: Schedule, params: DiffusionParams, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Weight of the squared error of the prediction at time t.

    `min_snr` gives the error of z_0 the weight min(SNR, gamma) (Hang et al. 2023, section 3.4). An error d of the
    prediction is an error q d of z_0, so the weight of the prediction's error is min(SNR, gamma) q^2. This gives
    min(SNR, gamma) / SNR for eps and min(SNR, gamma) / (SNR + 1) for v, without a separate case for each prediction.

    `p2` gives the error of the noise the weight 1 / (k + SNR)^gamma (Choi et al. 2022, equation 8). An error d of the
    prediction is an error alpha q / sigma d of the noise.

    Uniform weights of edm are those of Karras et al. 2022, 1 / c_out^2 for the error of z_0.
    """
    match params.loss_weighting:
        case UniformWeightingParams():
            return torch.ones_like(t)
        case MinSNRParams(gamma=gamma):
            snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
            return snr.clamp(max=gamma) * _z0_weights(schedule, params.prediction, t)[1] ** 2
        case P2Params(k=k, gamma=gamma):
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            of_noise = alpha * _z0_weights(schedule, params.prediction, t)[1] / sigma
            return (sigma**2 / (k * sigma**2 + alpha**2)) ** gamma * of_noise**2


def training_times(u: Float[Tensor, " b"], params: DiffusionParams) -> Float[Tensor, " b"]:
    """Map uniform numbers u in [0, 1] to training times by the inverse distribution function, which is monotone in u.

    Times are always inside (0, 1), even where rounding moves u or the time to an end: at 0 there is no noise, at 1
    there may be no signal, and in both cases the log-SNR is infinite.

    logit_normal and the shift: Esser et al. 2024, equations 19 and 23. log_normal: Karras et al. 2022, section 5.
    """
    match params.time_sampling:
        case UniformTimesParams():
            t = u
        case LogitNormalParams(mean=mean, std=std):
            t = torch.sigmoid(mean + std * torch.special.ndtri(u))
        case LogNormalParams(mean=mean, std=std):
            level = mean + std * torch.special.ndtri(u.double())
            t = Schedule(params.schedule).time_at(-level).to(u.dtype)
    t = params.time_shift * t / (1 + (params.time_shift - 1) * t)
    return t.clamp(TIME_MARGIN, 1 - TIME_MARGIN)


def denoiser(unet: nn.Module, schedule: Schedule, prediction: Prediction, condition: Condition | Prepared) -> Denoiser:
    """The network as a function (z, t) -> z0_hat under a fixed condition; z0_hat is float32 even under autocast."""

    def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        predicted: Tensor = unet(network_input(schedule, prediction, z, t), schedule.condition(t), condition)
        return z0_from_prediction(schedule, prediction, z, predicted.to(z.dtype), t)

    return denoise


class DenoisingObjective(nn.Module):
    """The training loss of a denoiser: weighted mean squared error of the raw prediction."""

    def __init__(self, unet: nn.Module, params: DiffusionParams) -> None:
        super().__init__()
        self.unet = unet
        self.schedule = Schedule(params.schedule)
        self.params = params

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Weighted loss and mean squared error of every row.

        batch: `z0`, `noise` (b c h w), `t` (b) and the parts of a `Condition`.
        """
        z0, noise, t = batch["z0"], batch["noise"], batch["t"]
        z = network_input(self.schedule, self.params.prediction, add_noise(self.schedule, z0, noise, t), t)
        predicted: Tensor = self.unet(z, self.schedule.condition(t), Condition.of_batch(batch))
        error = predicted.float() - target(self.schedule, self.params.prediction, z0, noise, t)
        mse = error.square().flatten(1).mean(1)
        return loss_weight(self.schedule, self.params, t) * mse, mse

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the rows: `loss`, the unweighted `mse`, and `caption_dropout`, the share of dropped captions.

        batch: as of `losses`, and `dropped` (b), true for rows to which the caller has given the null condition.
        """
        weighted, mse = self.losses(batch)
        return {"loss": weighted.mean(), "mse": mse.mean(), "caption_dropout": batch["dropped"].float().mean()}
