"""Params of the autoencoder."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from ldm.core.config import Section

Width = Annotated[int, Field(gt=0, le=8192)]


class KLAutoencoderParams(Section):
    """Topology of the KL autoencoder; with `patch_px` 1 it is that of Stable Diffusion."""

    kind: Literal["kl"]
    """Kind of network."""
    patch_px: int = Field(ge=1, le=16)
    """Side of the square of pixels that pixel unshuffling turns into one input position; 1 = no unshuffling."""
    channels: list[Width] = Field(min_length=1, max_length=8)
    """Channels per level; the resolution halves from each level to the next."""
    num_res_blocks: int = Field(ge=1, le=8)
    """Residual blocks per encoder level (the decoder has one more)."""
    latent_channels: int = Field(ge=1, le=64)
    """Channels of a latent."""
    middle_attention: bool
    """Whether encoder and decoder each have a self-attention layer at the lowest resolution."""
    quant_conv: bool
    """Whether a 1x1 convolution follows the encoder and another precedes the decoder, as in Stable Diffusion 1, 2 and
    XL; false = as in SD3 and FLUX."""
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


class IdentityParams(Section):
    """No network at all: latents are the pixels themselves, so that diffusion is in pixel space."""

    kind: Literal["identity"]
    """Kind of network."""
    latent_channels: Literal[1, 3]
    """Channels of a latent: 3 = red, green and blue; 1 = their mean, which is exact for grey images only."""

    @property
    def factor(self) -> int:
        """One latent position covers one pixel."""
        return 1


class DCAEParams(Section):
    """A deep-compression autoencoder (Chen et al. 2024) of diffusers' class `AutoencoderDC`. It is brought, never
    trained from the start."""

    kind: Literal["dc_ae"]
    """Kind of network."""
    config: dict[str, JsonValue]
    """The arguments of that class."""

    @property
    def factor(self) -> int:
        """Side in pixels of the square that one latent position covers."""
        widths = self.config["encoder_block_out_channels"]
        assert isinstance(widths, list), "checked"
        return 2 ** (len(widths) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        channels = self.config["latent_channels"]
        assert isinstance(channels, int), "checked"
        return channels

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, expected in (("encoder_block_out_channels", list), ("latent_channels", int)):
            if not isinstance(found := self.config.get(key), expected):
                raise ValueError(f"{key} {found}; expected the config of an AutoencoderDC as diffusers writes it")
        return self


AutoencoderParams = Annotated[KLAutoencoderParams | IdentityParams, Field(discriminator="kind")]
"""Params of every kind of autoencoder that is trained here. Each member has `latent_channels` and `factor`."""

StoredParams = Annotated[KLAutoencoderParams | IdentityParams | DCAEParams, Field(discriminator="kind")]
"""Params of every kind of autoencoder, those that are brought included."""


def check_groups(channels: list[int], norm_groups: int) -> None:
    """Raise ValueError if the channels of a level cannot be divided into `norm_groups` groups."""
    for width in channels:
        if width % norm_groups:
            raise ValueError(f"channels {width} is not a multiple of norm_groups {norm_groups}")


def with_quant_conv(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade the config of an autoencoder from format 2, in which every KL autoencoder had them, to format 3."""
    return {**config, "quant_conv": True} if config["kind"] == "kl" else config


def with_kind(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade the config of an autoencoder from format 1, which knew only one kind, to format 2."""
    return {"kind": "kl", **config}
