"""The denoiser: a UNet over latents that attends to text (Ronneberger et al. 2015; Rombach et al. 2022, section 3.3).

Only the network: noise and loss are in `diffusion`. Topology and parameter names are those of Stable Diffusion in
diffusers' layout, so checkpoints can be converted both ways; options outside that topology say so. Residual branches
and the last convolution start at zero, so the untrained network predicts zero and its blocks are identities.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ldm.autoencoder.model.blocks import Attention, GroupNorm, KeysValues, LayerNorm, ResBlock, Upsample, start_at_zero
from ldm.compute.attention import Shape
from ldm.compute.compilation import Block
from ldm.denoiser.model.condition import Condition, Prepared
from ldm.denoiser.model.network import Network
from ldm.denoiser.model.params import UNetParams

NORM_EPS = 1e-5
TRANSFORMER_NORM_EPS = 1e-6
EMBEDDING_STD = 0.5
"""Learned positions start about as large as what they are added to; if much smaller, order is learned late."""


class UNet(Network):
    """Denoising network f(z, time, condition); its output has the shape of z, and its meaning is up to the caller."""

    def __init__(self, params: UNetParams) -> None:
        super().__init__()
        self.latent_shape = (params.latent_channels, params.latent_size, params.latent_size)
        self.size_multiple, self.takes_any_size = params.size_multiple, not params.position_embedding
        self._params = params
        widths, first, size = params.channels, params.channels[0], params.latent_size
        self.conv_in = nn.Conv2d(params.latent_channels, first, 3, padding=1)
        self.position_embedding = _embedding(1, first, size, size) if params.position_embedding else None
        self.time_embedding = TimeEmbedding(first, 4 * first)
        self.context_encoder = ContextEncoder(params) if params.num_context_layers else None
        skip_widths = [first]
        self.down_blocks = nn.ModuleList(DownLevel(params, level, skip_widths) for level in range(len(widths)))
        self.mid_block = MiddleLevel(params)
        self.up_blocks = nn.ModuleList(UpLevel(params, level, skip_widths) for level in reversed(range(len(widths))))
        self.conv_norm_out = GroupNorm(params.norm_groups, first, NORM_EPS)
        self.conv_out = start_at_zero(nn.Conv2d(first, params.latent_channels, 3, padding=1))

    def attention_shapes(self, height: int, width: int) -> list[Shape]:
        """Shapes of self- and cross-attention in every level that has them and in the middle, and of the context
        layers."""
        params, last = self._params, len(self._params.channels) - 1
        # Every level halves the size, rounding up.
        sizes = [-(-height >> level) * -(-width >> level) for level in range(last + 1)]
        levels = [level for level in range(last + 1) if params.attention_levels[level] or level == last]
        num_keys = params.max_context_tokens
        shapes = [Shape(sizes[i], keys, params.head_widths[i]) for i in levels for keys in (sizes[i], num_keys)]
        return shapes + [Shape(num_keys, num_keys, params.head_widths[-1])] * (params.num_context_layers > 0)

    def prepare(self, condition: Condition) -> Prepared:
        """Keys and values of every cross-attention."""
        condition, layers = self._encoded(condition), [m for m in self.modules() if isinstance(m, TransformerLayer)]
        return Prepared({m.attn2: m.attn2.keys_values(condition.tokens) for m in layers}, condition.mask)

    def blocks(self) -> list[nn.Module]:
        """Residual blocks, attention blocks, and the layers of these and of the context encoder."""
        kinds = (ResBlock, SpatialTransformer, TransformerLayer, ContextLayer)
        return [module for module in reversed(list(self.modules())) if isinstance(module, kinds)]

    def forward(
        self, z: Float[Tensor, "b c h w"], time: Float[Tensor, "b"], condition: Condition | Prepared
    ) -> Float[Tensor, "b c h w"]:
        """Output for latents `z` at `time` (0..1000, fractions allowed) under the tokens of `condition`.

        Masked tokens are never attended to, pooled features are not read, and an image is refused.
        """
        activated_time = functional.silu(self.time_embedding(time))
        if isinstance(condition, Condition):
            condition = self._encoded(condition)
        h = self.conv_in(z)
        if self.position_embedding is not None:
            assert h.shape[2:] == self.position_embedding.shape[2:], "a position embedding fits latent_size alone"
            h = h + self.position_embedding
        # The way down pushes every result to `skips`, and the way up takes them in reverse order.
        skips = [h]
        for level in self.down_blocks:
            h = level(h, activated_time, condition, skips)
        h = self.mid_block(h, activated_time, condition)
        for level in self.up_blocks:
            h = level(h, activated_time, condition, skips)
        return self.conv_out(functional.silu(self.conv_norm_out(h)))

    def _encoded(self, condition: Condition) -> Condition:
        """The condition with tokens that the cross-attentions read."""
        assert condition.image is None, "this network has no channels for an image beside the latent"
        if self.context_encoder is None:
            return condition
        return replace(condition, tokens=self.context_encoder(condition.tokens, condition.mask))


class Level(nn.Module):
    """Residual blocks of one resolution; each may be followed by an attention block."""

    def __init__(self, params: UNetParams, level: int, in_widths: list[int], num_attentions: int) -> None:
        super().__init__()
        width, time_width = params.channels[level], 4 * params.channels[0]
        self.checkpointing = params.gradient_checkpointing
        self.resnets = nn.ModuleList(
            ResBlock(in_width, width, params.norm_groups, NORM_EPS, time_width) for in_width in in_widths
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(params, width, params.head_widths[level]) for _ in range(num_attentions)
        )

    def block(self, number: int, h: Tensor, time: Tensor, condition: Condition | Prepared) -> Tensor:
        """Apply residual block `number` and the attention block after it, if there is one."""
        if self.checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(self._block, number, h, time, condition, use_reentrant=False))
        return self._block(number, h, time, condition)

    def _block(self, number: int, h: Tensor, time: Tensor, condition: Condition | Prepared) -> Tensor:
        h = self.resnets[number](h, time)
        if number >= len(self.attentions):
            return h
        attention = cast(SpatialTransformer, self.attentions[number])
        # Its graph, if it is compiled, knows tensors alone, and so serves all blocks of its size.
        return attention(h, attention.contexts(condition), condition.mask)


class DownLevel(Level):
    """A level on the way down; it halves the size at its end, unless it is the last."""

    def __init__(self, params: UNetParams, level: int, skip_widths: list[int]) -> None:
        """Appends the widths of its skip connections to `skip_widths`."""
        width, num_blocks, is_last = params.channels[level], params.num_res_blocks, level == len(params.channels) - 1
        in_widths = [skip_widths[-1], *[width] * (num_blocks - 1)]
        super().__init__(params, level, in_widths, num_blocks * params.attention_levels[level])
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample(width)])
        skip_widths += [width] * (num_blocks + len(self.downsamplers))

    def forward(self, h: Tensor, time: Tensor, condition: Condition | Prepared, skips: list[Tensor]) -> Tensor:
        """Append every intermediate result to `skips`."""
        for number in range(len(self.resnets)):
            h = self.block(number, h, time, condition)
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h)
            skips.append(h)
        return h


class MiddleLevel(Level):
    """Residual block, attention block, residual block at the lowest resolution."""

    def __init__(self, params: UNetParams) -> None:
        super().__init__(params, len(params.channels) - 1, [params.channels[-1]] * 2, num_attentions=1)

    def forward(self, h: Tensor, time: Tensor, condition: Condition | Prepared) -> Tensor:
        """Feature map of the same shape."""
        return self.block(1, self.block(0, h, time, condition), time, condition)


class UpLevel(Level):
    """A level on the way up; it upsamples to the size of the next level at its end, unless it is the last."""

    def __init__(self, params: UNetParams, level: int, skip_widths: list[int]) -> None:
        """Removes the widths of its skip connections from `skip_widths`."""
        widths, num_blocks = params.channels, params.num_res_blocks + 1
        below = widths[min(level + 1, len(widths) - 1)]
        in_widths = [width + skip_widths.pop() for width in [below, *[widths[level]] * (num_blocks - 1)]]
        super().__init__(params, level, in_widths, num_blocks * params.attention_levels[level])
        self.upsamplers = nn.ModuleList([] if level == 0 else [Upsample(widths[level])])

    def forward(self, h: Tensor, time: Tensor, condition: Condition | Prepared, skips: list[Tensor]) -> Tensor:
        """Remove one of `skips` per block and concatenate it to the block's input."""
        for number in range(len(self.resnets)):
            h = self.block(number, torch.cat([h, skips.pop()], dim=1), time, condition)
        for upsample in self.upsamplers:
            h = upsample(h, skips[-1].shape[2:])
        return h


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Halve the size, rounding up."""
        return self.conv(x)


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time, then two linear layers (Ho et al. 2020, appendix B)."""

    def __init__(self, num_waves: int, width: int) -> None:
        super().__init__()
        self.num_waves = num_waves
        self.linear_1 = nn.Linear(num_waves, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, time: Float[Tensor, "b"]) -> Float[Tensor, "b e"]:
        """Embedding of times in 0..1000."""
        waves = sinusoids(time, self.num_waves).to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(waves)))


class SpatialTransformer(Block):
    """Transformer layers over all positions of a feature map, with a residual connection around them."""

    def __init__(self, params: UNetParams, width: int, head_width: int) -> None:
        super().__init__()
        linear, num_heads = params.linear_projection, width // head_width
        self.norm = GroupNorm(params.norm_groups, width, TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerLayer(width, num_heads, params.context_width) for _ in range(params.num_transformer_layers)
        )
        self.proj_out = start_at_zero(nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1))

    def contexts(self, condition: Condition | Prepared) -> list[Tensor] | list[KeysValues]:
        """What each of its layers attends to: the tokens, or what they have become for it."""
        layers = cast(Iterable[TransformerLayer], self.transformer_blocks)
        if isinstance(condition, Condition):
            return [condition.tokens for _ in layers]
        return [condition.keys_values[layer.attn2] for layer in layers]

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        contexts: list[Tensor] | list[KeysValues],
        mask: Bool[Tensor, "b m"] | None,
    ) -> Float[Tensor, "b c h w"]:
        """Attend to all positions of the feature map and to the contexts; the shape stays the same."""
        tokens = _project(self.norm(x).flatten(2).transpose(1, 2), self.proj_in)
        for layer, context in zip(self.transformer_blocks, contexts, strict=True):
            tokens = layer(tokens, context, mask)
        return x + _project(tokens, self.proj_out).transpose(1, 2).unflatten(2, x.shape[2:])


class TransformerLayer(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward network, each on a residual branch."""

    def __init__(self, width: int, num_heads: int, context_width: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn1 = Attention(width, width, num_heads, bias=False)
        self.norm2 = LayerNorm(width)
        self.attn2 = Attention(width, context_width, num_heads, bias=False)
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Tensor | KeysValues, mask: Bool[Tensor, "b m"] | None
    ) -> Float[Tensor, "b n d"]:
        """Updated tokens of the feature map."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class FeedForward(nn.Module):
    """Two linear layers with a GELU gate between them, where the width is four times as large (Shazeer 2020, GEGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The identity keeps the numbering of published checkpoints, which have a dropout here.
        self.net = nn.ModuleList([GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Map every token independently."""
        for layer in self.net:
            x = layer(x)
        return x


class GatedLinear(nn.Module):
    """One half of a linear map times the GELU of the other."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_width, 2 * out_width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        """Map every token independently."""
        if hasattr(self.proj, "base_layer"):  # low-rank layers are around it, which only a call adds
            values, gates = self.proj(x).chunk(2, dim=-1)
            return values * functional.gelu(gates)
        # Splitting the weights, not the output, keeps all operands contiguous: three times faster in bf16 on a CPU.
        (weight, gate_weight), (bias, gate_bias) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        return functional.linear(x, weight, bias) * functional.gelu(functional.linear(x, gate_weight, gate_bias))


class ContextEncoder(nn.Module):
    """Trainable layers over the token states of the frozen, perhaps causal, text encoder: all tokens see each other.

    Outside Stable Diffusion's topology. Starts as the identity, except for the learned token positions that it adds.
    """

    def __init__(self, params: UNetParams) -> None:
        super().__init__()
        width, num_heads = params.context_width, params.context_width // params.head_widths[-1]
        self.positions = _embedding(params.max_context_tokens, width)
        self.layers = nn.ModuleList(ContextLayer(width, num_heads) for _ in range(params.num_context_layers))

    def forward(
        self, context: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Context of the same shape; it may have at most `max_context_tokens` tokens."""
        num_tokens, most = context.shape[1], len(self.positions)
        assert num_tokens <= most, f"a context of {num_tokens} tokens is longer than max_context_tokens {most}"
        context = context + self.positions[:num_tokens]
        for layer in self.layers:
            context = layer(context, mask)
        return context


class ContextLayer(Block):
    """Pre-norm self-attention and feed-forward network, each on a residual branch that starts at zero."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attention = Attention(width, width, num_heads, bias=False)
        self.norm2 = LayerNorm(width)
        self.ff = FeedForward(width)
        for closing in (self.attention.to_out[-1], self.ff.net[-1]):
            assert isinstance(closing, nn.Linear)
            start_at_zero(closing)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Updated tokens."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, mask)
        return x + self.ff(self.norm2(x))


def sinusoids(time: Float[Tensor, "b"], num_waves: int) -> Float[Tensor, "b f"]:
    """cos(w_i t), then sin(w_i t), with w_i = 10000^(-i / (f/2)), in float32 (Vaswani et al. 2017, section 3.5).

    An odd `num_waves` ends in a zero.
    """
    half = num_waves // 2
    # Same order of operations as diffusers: dividing first rounds differently, by up to 6e-5 in the waves at t = 1000.
    exponents = -math.log(10000) * torch.arange(half, device=time.device, dtype=torch.float32) / half
    angles = time.float()[:, None] * torch.exp(exponents)
    return functional.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, num_waves % 2))


def _embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(EMBEDDING_STD * torch.randn(shape))


def _project(tokens: Float[Tensor, "b n d"], layer: nn.Linear | nn.Conv2d) -> Float[Tensor, "b n d"]:
    """Apply a linear layer or a 1x1 convolution to tokens; as a linear map, the convolution is faster."""
    if hasattr(layer, "base_layer"):  # low-rank layers are around it, which only a call adds
        return _called(tokens, layer)
    return functional.linear(tokens, layer.weight.flatten(1), layer.bias)


def _called(tokens: Float[Tensor, "b n d"], layer: nn.Module) -> Float[Tensor, "b n d"]:
    """What a layer around a linear one or a 1x1 convolution makes of tokens."""
    if layer.get_parameter("base_layer.weight").dim() == 2:
        return layer(tokens)
    return layer(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
