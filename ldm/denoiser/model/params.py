"""The denoiser, its forward process and its loss."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ldm.autoencoder.model.params import Width, check_groups
from ldm.core.config import Section
from ldm.denoiser.model.schedules import Prediction, ScheduleName, alpha_sigma


class UNetParams(Section):
    """Topology of the UNet; without context layers and position embedding it is Stable Diffusion's."""

    kind: Literal["unet"]
    """Which network this is."""
    latent_channels: int = Field(ge=1, le=64)
    """Channels of the latent."""
    latent_size: int = Field(ge=1, le=1024)
    """Height and width of the training latents."""
    channels: list[Width] = Field(min_length=1, max_length=8)
    """Width per level; the resolution halves between levels."""
    num_res_blocks: int = Field(ge=1, le=8)
    """Residual blocks per level on the way down (one more on the way up)."""
    attention_levels: list[bool] = Field(min_length=1, max_length=8)
    """Whether a level has self- and cross-attention; the middle always has."""
    num_transformer_layers: int = Field(ge=1, le=32)
    """Transformer layers per attention block."""
    head_width: Width | list[Width]
    """Channels per attention head, one for all levels or one per level; below 32 is slow."""
    linear_projection: bool
    """Shape of the weights around an attention block: linear as in Stable Diffusion 2, or 1x1 convolutions as in 1."""
    context_width: int = Field(ge=1, le=8192)
    """Width of the text embedding."""
    norm_groups: int = Field(ge=1, le=128)
    """Groups of every group norm."""
    num_context_layers: int = Field(ge=0, le=32)
    """Trainable bidirectional transformer layers over the context before cross-attention; 0 = none."""
    max_context_tokens: int = Field(ge=1, le=1024)
    """Rows of the learned token positions that context layers add; unused without context layers."""
    position_embedding: bool
    """Add a learned embedding of every latent position after the first convolution."""
    gradient_checkpointing: bool
    """Recompute blocks in the backward pass: about a third more time, far less memory."""

    @property
    def takes_pooled(self) -> bool:
        """Whether the network reads pooled text features; each batch of its training then holds them."""
        return False

    @property
    def context_limit(self) -> int | None:
        """Most tokens that a context may have; None = any number."""
        return self.max_context_tokens if self.num_context_layers else None

    @property
    def size_multiple(self) -> int:
        """What height and width of a latent should be multiples of."""
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
"""Every kind of denoising network: with a second one, a union with the discriminator `kind`. Each has
`latent_channels`, `latent_size`, `context_width`, and `context_limit`, which is its `max_context_tokens` or None."""


class UniformWeightingParams(Section):
    """The error of the prediction has the same weight at all times."""

    kind: Literal["uniform"]
    """Its name."""


class MinSNRParams(Section):
    """The weight of easy times is capped (Hang et al. 2023)."""

    kind: Literal["min_snr"]
    """Its name."""
    gamma: float = Field(gt=0, le=1000)
    """Cap of the signal-to-noise ratio (5 in the paper)."""


class UniformTimesParams(Section):
    """All training times are equally likely."""

    kind: Literal["uniform"]
    """Its name."""


class LogitNormalParams(Section):
    """The logit of a training time is normally distributed (Esser et al. 2024)."""

    kind: Literal["logit_normal"]
    """Its name."""
    mean: float = Field(ge=-5, le=5)
    """Mean of the logit; above 0 favours high noise."""
    std: float = Field(gt=0, le=5)
    """Standard deviation of the logit."""


class DiffusionParams(Section):
    """The forward process, what the network predicts, and how the loss weighs noise levels."""

    schedule: ScheduleName
    """Share of signal and noise over time; `zero_terminal_snr` is `scaled_linear` rescaled to end in pure noise."""
    prediction: Prediction
    """What the network puts out: the noise, the velocity alpha noise - sigma z0, the clean latent, or noise - z0."""
    loss_weighting: UniformWeightingParams | MinSNRParams = Field(discriminator="kind")
    """How the loss weighs times."""
    time_sampling: UniformTimesParams | LogitNormalParams = Field(discriminator="kind")
    """Distribution of training times."""
    time_shift: float = Field(gt=0, le=100)
    """Shift s of times t -> s t / (1 + (s - 1) t); 1 is none, more favours high noise."""
    stratified_times: bool
    """One time from each of `batch_size` equal slices of the distribution, instead of independent ones."""
    caption_dropout: float = Field(ge=0, lt=1)
    """Probability that a caption is replaced by the null embedding; 0 rules out guidance."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prediction == "eps" and alpha_sigma(self.schedule, 1)[0] == 0:
            raise ValueError(
                f"prediction eps cannot be used with schedule {self.schedule}: it ends in pure noise, "
                "where the noise says nothing about the clean latent; use v, x0 or flow"
            )
        return self


def with_kinds(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a UNet of format 1, which named loss weighting and time sampling beside values of all kinds, in
    format 2."""
    diffusion = dict(config["diffusion"])
    gamma, mean, std = (diffusion.pop(key) for key in ("min_snr_gamma", "logit_normal_mean", "logit_normal_std"))
    values = {"min_snr": {"gamma": gamma}, "logit_normal": {"mean": mean, "std": std}, "uniform": {}}
    for key in ("loss_weighting", "time_sampling"):
        diffusion[key] = {"kind": diffusion[key], **values[diffusion[key]]}
    return {**config, "diffusion": diffusion}


def with_network_kind(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a UNet of format 2, which knew one kind of network, in format 3."""
    return {**config, "network": {"kind": "unet", **config["network"]}}
