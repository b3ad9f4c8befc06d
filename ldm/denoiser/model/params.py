"""Params of the denoiser, of its forward process and of its loss."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ldm.autoencoder.model.params import Width, check_groups
from ldm.core.config import Section
from ldm.denoiser.model.schedules import VE_SIGMAS, Prediction, ScheduleName, alpha_sigma


class NetworkBase(Section):
    """What the params of a denoising network have, whatever its kind."""

    latent_channels: int = Field(ge=1, le=256)
    """Channels of the latent."""
    latent_size: int = Field(ge=1, le=1024)
    """Height and width of the training latents."""
    context_width: int = Field(ge=1, le=8192)
    """Width of the text embedding."""

    @property
    def takes_pooled(self) -> bool:
        """Whether the network reads pooled text features; each batch of its training then holds them."""
        return False

    @property
    def context_limit(self) -> int | None:
        """Most tokens that a context may have, which is its `max_context_tokens`; None = any number."""
        return None


class UNetParams(NetworkBase):
    """Topology of the UNet; without context layers and position embedding it is that of Stable Diffusion."""

    kind: Literal["unet"]
    """Kind of network."""
    channels: list[Width] = Field(min_length=1, max_length=8)
    """Channels per level; the resolution halves from each level to the next."""
    num_res_blocks: int = Field(ge=1, le=8)
    """Residual blocks per level on the way down (one more on the way up)."""
    attention_levels: list[bool] = Field(min_length=1, max_length=8)
    """Whether each level has self- and cross-attention; the middle always has."""
    num_transformer_layers: int = Field(ge=1, le=32)
    """Transformer layers per attention block."""
    head_width: Width | list[Width]
    """Channels per attention head: one number for all levels, or one per level. Less than 32 is slow."""
    linear_projection: bool
    """Projections around attention blocks: linear, as in Stable Diffusion 2; false = 1x1 convolutions, as in 1."""
    norm_groups: int = Field(ge=1, le=128)
    """Groups of every group norm."""
    num_context_layers: int = Field(ge=0, le=32)
    """Trainable bidirectional transformer layers that the context passes before cross-attention; 0 = none."""
    max_context_tokens: int = Field(ge=1, le=1024)
    """Number of learned token positions, which context layers add to the context; unused without context layers."""
    position_embedding: bool
    """Whether a learned embedding of every latent position is added after the first convolution."""
    gradient_checkpointing: bool
    """Whether blocks are recomputed in the backward pass: about a third more time, far less memory."""

    @property
    def context_limit(self) -> int | None:
        """Largest number of tokens in a context; None = no limit."""
        return self.max_context_tokens if self.num_context_layers else None

    @property
    def size_multiple(self) -> int:
        """Height and width of a latent should be multiples of this."""
        return 2 ** (len(self.channels) - 1)

    @property
    def head_widths(self) -> list[int]:
        """Channels per attention head of every level."""
        return [self.head_width] * len(self.channels) if isinstance(self.head_width, int) else self.head_width

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_groups(self.channels, self.norm_groups)
        if len(self.attention_levels) != len(self.channels):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} entries, channels {len(self.channels)}"
            )
        if len(self.head_widths) != len(self.channels):
            raise ValueError(f"head_width has {len(self.head_widths)} entries, channels {len(self.channels)}")
        attends = [*self.attention_levels[:-1], True]
        for width, head_width, attend in zip(self.channels, self.head_widths, attends, strict=True):
            if attend and width % head_width:
                raise ValueError(f"channels {width} is not a multiple of head_width {head_width}")
        if self.num_context_layers and self.context_width % self.head_widths[-1]:
            raise ValueError(
                f"context_width {self.context_width} is not a multiple of head_width {self.head_widths[-1]}"
            )
        if self.latent_size % self.size_multiple:
            raise ValueError(
                f"latent_size {self.latent_size} is not a multiple of 2^(levels - 1) = {self.size_multiple}"
            )
        return self


NetworkParams = UNetParams
"""Every kind of denoising network: with a second one, a union of subclasses of `NetworkBase` with the discriminator
`kind`."""


class UniformWeightingParams(Section):
    """The error of the prediction has the same weight at all times."""

    kind: Literal["uniform"]
    """Kind of weighting."""


class MinSNRParams(Section):
    """The weight of times with little noise is capped (Hang et al. 2023)."""

    kind: Literal["min_snr"]
    """Kind of weighting."""
    gamma: float = Field(gt=0, le=1000)
    """Cap of the signal-to-noise ratio (5 in the paper)."""


class P2Params(Section):
    """The error of the noise has less weight where it is little noise (Choi et al. 2022): 1 / (k + SNR)^gamma."""

    kind: Literal["p2"]
    """Kind of weighting."""
    k: float = Field(gt=0, le=1000)
    """What is added to the signal-to-noise ratio (1 in the paper)."""
    gamma: float = Field(ge=0, le=4)
    """Power (0.5 or 1 in the paper); 0 weighs the errors of the noise evenly."""


class UniformTimesParams(Section):
    """All training times are equally likely."""

    kind: Literal["uniform"]
    """Kind of distribution."""


class LogitNormalParams(Section):
    """The logit of a training time is normally distributed (Esser et al. 2024)."""

    kind: Literal["logit_normal"]
    """Kind of distribution."""
    mean: float = Field(ge=-5, le=5)
    """Mean of the logit; above 0 favours high noise."""
    std: float = Field(gt=0, le=5)
    """Standard deviation of the logit."""


class LogNormalParams(Section):
    """The logarithm of sigma / alpha at a training time is normally distributed (Karras et al. 2022)."""

    kind: Literal["log_normal"]
    """Kind of distribution."""
    mean: float = Field(ge=-10, le=10)
    """P_mean: mean of log(sigma / alpha), more favours high noise. The paper's -1.2 for data of deviation 0.5 is -0.5
    for latents, whose deviation is 1."""
    std: float = Field(gt=0, le=10)
    """P_std: its standard deviation (1.2 in the paper)."""


class DiffusionParams(Section):
    """The forward process, what the network predicts, and how the loss weighs noise levels."""

    schedule: ScheduleName
    """Signal and noise over time; `zero_terminal_snr` is `scaled_linear` rescaled to end in pure noise; `vp` and `ve`
    are the variance preserving and exploding SDE."""
    prediction: Prediction
    """Network output: noise (eps), alpha noise - sigma z0 (v), clean latent (x0), noise - z0 (flow), or the mixture of
    both with unit deviation, from an input scaled to it (edm)."""
    loss_weighting: UniformWeightingParams | MinSNRParams | P2Params = Field(discriminator="kind")
    """Weight of the loss over time."""
    time_sampling: UniformTimesParams | LogitNormalParams | LogNormalParams = Field(discriminator="kind")
    """Distribution of training times."""
    time_shift: float = Field(gt=0, le=100)
    """Shift s of times, t -> s t / (1 + (s - 1) t); 1 = none, more favours high noise."""
    stratified_times: bool
    """Whether a batch has one time from each of `batch_size` equal slices of the distribution; false = independent."""
    offset_noise: float = Field(ge=0, le=1)
    """Deviation of noise that all positions of a channel share, added to the noise of training (0.1 is usual), so that
    the network also learns to move the mean of an image; 0 = none."""
    caption_dropout: float = Field(ge=0, lt=1)
    """Probability that a caption is replaced by the null embedding; with 0, guidance is not possible."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prediction == "eps" and alpha_sigma(self.schedule, 1)[0] == 0:
            raise ValueError(
                f"prediction eps cannot be used with schedule {self.schedule}: it ends in pure noise, "
                "where the noise says nothing about the clean latent; use v, x0, flow or edm"
            )
        # Of a mixture of deviation 1, a small UNet with edm made samples of deviation 1.02; with eps 7.9, and with x0
        # samples without the spread of a component, since detail is lost in what is not scaled.
        if self.schedule == "ve" and self.prediction != "edm":
            raise ValueError(
                f"prediction {self.prediction} cannot be used with schedule ve: its latents reach "
                f"{VE_SIGMAS[1]:g} deviations of the data, and only edm scales what the network sees of them; use edm"
            )
        return self


def with_kinds(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade the config of a UNet from format 1, in which loss weighting and time sampling were names beside the
    values of all kinds, to format 2."""
    diffusion = dict(config["diffusion"])
    gamma, mean, std = (diffusion.pop(key) for key in ("min_snr_gamma", "logit_normal_mean", "logit_normal_std"))
    values = {"min_snr": {"gamma": gamma}, "logit_normal": {"mean": mean, "std": std}, "uniform": {}}
    for key in ("loss_weighting", "time_sampling"):
        diffusion[key] = {"kind": diffusion[key], **values[diffusion[key]]}
    return {**config, "diffusion": diffusion}


def with_network_kind(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade the config of a UNet from format 2, which knew only one kind of network, to format 3."""
    return {**config, "network": {"kind": "unet", **config["network"]}}


def with_offset_noise(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade the config of a UNet from format 3, which knew no offset noise, to format 4."""
    return {**config, "diffusion": {**config["diffusion"], "offset_noise": 0.0}}
