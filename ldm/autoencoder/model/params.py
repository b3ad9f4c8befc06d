"""The autoencoder and its loss."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ldm.core.config import Section

Width = Annotated[int, Field(gt=0, le=8192)]


class KLAutoencoderParams(Section):
    """Topology of the KL autoencoder; with `patch_px` 1 it is Stable Diffusion's."""

    kind: Literal["kl"]
    """Which network this is."""
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
        check_groups(self.channels, self.norm_groups)
        return self

    @property
    def factor(self) -> int:
        """Side in pixels of the square that one latent position covers."""
        return self.patch_px * 2 ** (len(self.channels) - 1)


AutoencoderParams = KLAutoencoderParams
"""Every kind of autoencoder: with a second one, a union with the discriminator `kind`. Each has `latent_channels` and
`factor`."""


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


def check_groups(channels: list[int], norm_groups: int) -> None:
    """ValueError: the channels of a level cannot be divided into so many groups."""
    for width in channels:
        if width % norm_groups:
            raise ValueError(f"channels {width} is not a multiple of norm_groups {norm_groups}")


def with_kind(config: dict[str, Any]) -> dict[str, Any]:
    """The config of an autoencoder of format 1, which knew one kind, in format 2."""
    return {"kind": "kl", **config}
