"""The scale of latents inside an autoencoder's own 1x1 convolutions, for tools that know one factor for all channels.

A tool multiplies latents by its `scaling_factor` before denoising, and divides by it before decoding. Our latents are
normalised per channel, with a mean. So `quant_conv` gives (z - mean) / (std factor) instead of z, and `post_quant_conv`
takes that back. Both are exact up to rounding, at every border too, since a 1x1 convolution has no padding.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

SCALING_FACTOR = 0.18215
"""That of Stable Diffusion 1 and 2, which tools take where a file does not say it."""
CONVOLUTIONS = ("quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight", "post_quant_conv.bias")

_ROUNDING = 2.0**-23
"""A deviation is a float32."""


def folded(
    tensors: Mapping[str, Tensor], mean: Float[Tensor, "c"], std: Float[Tensor, "c"], factor: float = SCALING_FACTOR
) -> dict[str, Tensor]:
    """`CONVOLUTIONS` of an autoencoder whose latents, times `factor`, have mean 0 and deviation 1. One that has none of
    these gets them. Nothing changes where the factor is the scale already, as of an autoencoder that was imported."""
    scale, mean = std.double().cpu() * factor, mean.double().cpu()
    scale = torch.where((scale - 1).abs() < _ROUNDING, 1.0, scale)
    weight, bias = _convolution(tensors, "quant_conv", 2 * len(mean))
    # The first half of the output are means; the second are log variances, which a scale moves.
    by, minus = torch.cat([scale, torch.ones_like(mean)]), torch.cat([mean, 2 * scale.log()])
    made = {"quant_conv.weight": weight / by[:, None, None, None], "quant_conv.bias": (bias - minus) / by}
    weight, bias = _convolution(tensors, "post_quant_conv", len(mean))
    moved = bias + weight.flatten(1) @ mean
    made |= {"post_quant_conv.weight": weight * scale[:, None, None], "post_quant_conv.bias": moved}
    return {name: tensor.float() for name, tensor in made.items()}


def _convolution(tensors: Mapping[str, Tensor], name: str, num_channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64, those of the identity if there are none."""
    if f"{name}.weight" not in tensors:
        return torch.eye(num_channels).double()[:, :, None, None], torch.zeros(num_channels).double()
    return tensors[f"{name}.weight"].double().cpu(), tensors[f"{name}.bias"].double().cpu()
