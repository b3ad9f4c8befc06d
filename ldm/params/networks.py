"""Models of the two networks, shared by the sections that build them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldm.config import Section

Width = Annotated[int, Field(gt=0, le=8192)]


class AutoencoderParams(Section):
    """Topology of the autoencoder; with `patch_px` 1 it is Stable Diffusion's."""

    patch_px: int = Field(ge=1, le=16)
    """Side of the square of pixels that becomes one input position by pixel unshuffling; 1 = none."""
    channels: list[Width] = Field(min_length=1, max_length=8)
    """Width per level; the resolution halves between levels."""
    num_res_blocks: int = Field(ge=1, le=8)
    """Residual blocks per encoder level (the decoder has one more)."""
    latent_channels: int = Field(ge=1, le=64)
    """Channels of the latent."""
    middle_attention: bool
    """One self-attention layer at the lowest resolution of encoder and decoder."""
    norm_groups: int = Field(ge=1, le=128)
    """Groups of every group norm."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_groups(self.channels, self.norm_groups)
        return self

    @property
    def factor(self) -> int:
        """Side in pixels of the square that one latent position stands for."""
        return self.patch_px * 2 ** (len(self.channels) - 1)


class ReconstructionParams(Section):
    """Loss of the autoencoder, per pixel value: reconstruction + kl_weight x KL."""

    error: Literal["l1", "l2"]
    """Mean absolute or mean squared error."""
    kl_weight: float = Field(ge=0, le=1)
    """Weight of the KL divergence in nats per pixel value; 1 gives the evidence bound of a likelihood."""
    learned_log_variance: bool
    """Divide the error by a trained output scale, as in a likelihood; false = scale 1."""
    gradient_weight: float = Field(ge=0, le=100)
    """Weight of the error of image gradients, the offline perceptual term; 0 = off."""
    num_gradient_scales: int = Field(ge=1, le=6)
    """Resolutions at which image gradients are compared, each half of the one before."""


class UNetParams(Section):
    """Topology of the denoiser; without context layers and position embedding it is Stable Diffusion's."""

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
    def size_multiple(self) -> int:
        """What height and width of a latent should be multiples of."""
        return 2 ** (len(self.channels) - 1)

    @property
    def head_widths(self) -> list[int]:
        """Channels per attention head of every level."""
        return [self.head_width] * len(self.channels) if isinstance(self.head_width, int) else self.head_width

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_groups(self.channels, self.norm_groups)
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


def _check_groups(channels: list[int], norm_groups: int) -> None:
    for width in channels:
        if width % norm_groups:
            raise ValueError(f"channels {width} is not a multiple of norm_groups {norm_groups}")
