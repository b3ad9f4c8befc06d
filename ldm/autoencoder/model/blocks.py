"""Layers that the autoencoder and the UNet share; parameters are named as in diffusers' layout of Stable Diffusion."""

from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ldm.compute.attention import attend

KeysValues = tuple[Float[Tensor, "b k m d"], Float[Tensor, "b k m d"]]
"""What an `Attention` makes of a context, by heads."""
Layer = TypeVar("Layer", bound=nn.Module)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))); if the width changes, the shortcut is a 1x1 convolution.

    The last convolution starts at zero, so a deep stack starts as the identity (Dhariwal & Nichol 2021, their code).
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm_groups: int, norm_eps: float, time_width: int | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_width is None else nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, norm_eps)
        self.conv2 = start_at_zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b e"] | None = None
    ) -> Float[Tensor, "b d h w"]:
        """time: the time embedding after its activation; None for a block without one."""
        h = self.conv1(functional.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Multi-head attention of tokens to a context; in self-attention the context is the tokens themselves."""

    def __init__(self, width: int, context_width: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias)
        self.to_k = nn.Linear(context_width, width, bias)
        self.to_v = nn.Linear(context_width, width, bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m e"] | KeysValues,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Attended values, without a residual connection. context: tokens, or what `keys_values` made of them. mask:
        True for context tokens that may be attended to; None = all of them."""
        q = self._heads(self.to_q(x))
        k, v = context if isinstance(context, tuple) else self.keys_values(context)
        return self.to_out[0](attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def keys_values(self, context: Float[Tensor, "b m e"]) -> KeysValues:
        """Keys and values of context tokens; a context that stays the same needs them once."""
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def _heads(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k n d"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], size: torch.Size | None = None) -> Float[Tensor, "b c h2 w2"]:
        """Upsample to `size` (height, width), or to twice the size if None."""
        size = size or torch.Size([2 * side for side in x.shape[-2:]])
        return self.conv(functional.interpolate(x, size=size, mode="nearest"))


def start_at_zero(layer: Layer) -> Layer:
    """Set weight and bias of a layer to zero, so that the residual branch it ends adds nothing at first; returns it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
