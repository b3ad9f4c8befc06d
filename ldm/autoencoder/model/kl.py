"""The KL autoencoder of latent diffusion (Kingma & Welling 2014; Rombach et al. 2022, section 3.1).

Topology and parameter names are those of Stable Diffusion's autoencoder in diffusers' layout. The only option outside
that layout is the patchifying stem. Residual branches start at zero.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ldm.autoencoder.model.blocks import Attention, GroupNorm, ResBlock, Upsample
from ldm.autoencoder.model.network import IMAGE_CHANNELS, Autoencoder, Posterior
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.compute.attention import Shape
from ldm.compute.compilation import Block

NORM_EPS = 1e-6


class KLAutoencoder(Autoencoder):
    """A convolutional encoder to a Gaussian posterior over latents, and a convolutional decoder."""

    def __init__(self, params: KLAutoencoderParams) -> None:
        super().__init__()
        self.factor = params.factor
        self._middle_width = params.channels[-1] if params.middle_attention else None
        self.encoder = Encoder(params)
        self.decoder = Decoder(params)
        channels, has_convs = params.latent_channels, params.quant_conv
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if has_convs else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if has_convs else nn.Identity()

    def attention_shapes(self, height: int, width: int) -> list[Shape]:
        """Shapes of its attention on latents of this size: one head over all positions, or none at all."""
        return [Shape(height * width, height * width, self._middle_width)] if self._middle_width else []

    def encode(self, x: Float[Tensor, "b 3 h w"]) -> Posterior:
        """Posterior over latents (b, latent_channels, h / factor, w / factor) of signals in -1..1."""
        size = tuple(x.shape[2:])
        assert not any(side % self.factor for side in size), f"factor {self.factor} does not divide the size {size}"
        return Posterior.from_moments(self.quant_conv(self.encoder(x)))

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Signal in about -1..1 from latents on the scale of `encode`."""
        return self.decoder(self.post_quant_conv(z)).float()


class Encoder(nn.Module):
    """Signal to moments of the posterior, which `quant_conv` then maps."""

    def __init__(self, params: KLAutoencoderParams) -> None:
        super().__init__()
        widths = params.channels
        self.patch_px = params.patch_px
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS * params.patch_px**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            downsamplers = [] if level == len(widths) - 1 else [Downsample(width)]
            resnets = _resnets(params, widths[max(level - 1, 0)], width, params.num_res_blocks)
            self.down_blocks.append(Level(resnets, downsamplers=downsamplers))
        self.mid_block = Middle(params)
        self.conv_norm_out = GroupNorm(params.norm_groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * params.latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Twice `latent_channels` channels, a `factor`th of the size."""
        h = self.conv_in(functional.pixel_unshuffle(x, self.patch_px))
        for level in self.down_blocks:
            h = level(h)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """Latents, already mapped by `post_quant_conv`, to signal."""

    def __init__(self, params: KLAutoencoderParams) -> None:
        super().__init__()
        widths = params.channels[::-1]
        self.patch_px = params.patch_px
        self.conv_in = nn.Conv2d(params.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(params)
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            upsamplers = [] if level == len(widths) - 1 else [Upsample(width)]
            resnets = _resnets(params, widths[max(level - 1, 0)], width, params.num_res_blocks + 1)
            self.up_blocks.append(Level(resnets, upsamplers=upsamplers))
        self.conv_norm_out = GroupNorm(params.norm_groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], IMAGE_CHANNELS * params.patch_px**2, 3, padding=1)

    def forward(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Three channels, `factor` times the size."""
        h = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            h = level(h)
        return functional.pixel_shuffle(self.conv_out(functional.silu(self.conv_norm_out(h))), self.patch_px)


class Level(nn.Module):
    """Residual blocks of one resolution, then a change to the next resolution, if there is one."""

    def __init__(
        self,
        resnets: Sequence[nn.Module],
        *,
        downsamplers: Sequence[nn.Module] = (),
        upsamplers: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.downsamplers = nn.ModuleList(downsamplers)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Apply the layers one after the other."""
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            h = layer(h)
        return h


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with optional self-attention between them."""

    def __init__(self, params: KLAutoencoderParams) -> None:
        super().__init__()
        width = params.channels[-1]
        self.resnets = nn.ModuleList(ResBlock(width, width, params.norm_groups, NORM_EPS, None) for _ in range(2))
        self.attentions = nn.ModuleList([SelfAttention(width, params.norm_groups)] if params.middle_attention else [])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The same shape."""
        first, last = self.resnets
        h = first(x)
        for attention in self.attentions:
            h = attention(h)
        return last(h)


class SelfAttention(Attention, Block):
    """Single-head attention of all positions of a feature map to each other, with a residual connection."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__(width, width, num_heads=1, bias=True)
        self.group_norm = GroupNorm(norm_groups, width, NORM_EPS)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The same shape."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + super().forward(tokens, tokens).transpose(1, 2).unflatten(2, x.shape[-2:])


class Downsample(nn.Module):
    """A convolution of stride 2, padded only below and on the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Half the size."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


def _resnets(params: KLAutoencoderParams, in_width: int, width: int, num_blocks: int) -> list[ResBlock]:
    in_widths = [in_width, *[width] * (num_blocks - 1)]
    return [ResBlock(before, width, params.norm_groups, NORM_EPS, None) for before in in_widths]
