"""Between two noises, and between two conditions."""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.denoiser.model.condition import Condition

_PARALLEL = 1e-4
"""Least sine of an angle by which is divided."""


def slerp(
    first: Float[Tensor, "b c h w"], last: Float[Tensor, "b c h w"], fractions: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Spherical interpolation of each row (Shoemake 1985): the direction turns at constant speed, the norm changes at
    constant speed. 0 = first, 1 = last.

    A mean of two noises has less variance than noise, so the network would not know it; what lies on the arc between
    them has as much. Rows that are (nearly) parallel or opposite are mixed linearly.
    """
    a, b, part = first.flatten(1).double(), last.flatten(1).double(), fractions.double()[:, None]
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    angle = ((a * b).sum(1, keepdim=True) / (norm_a * norm_b)).clamp(-1, 1).acos()
    sine = angle.sin().clamp(min=_PARALLEL)
    unit = (((1 - part) * angle).sin() * a / norm_a + (part * angle).sin() * b / norm_b) / sine
    mixed = torch.where(angle.sin() < _PARALLEL, torch.lerp(a, b, part), torch.lerp(norm_a, norm_b, part) * unit)
    return mixed.to(first).reshape(first.shape)


def lerp(
    first: Float[Tensor, "b *shape"], last: Float[Tensor, "b *shape"], fractions: Float[Tensor, " b"]
) -> Float[Tensor, "b *shape"]:
    """Linear interpolation of each row. 0 = first, 1 = last."""
    return torch.lerp(first, last, fractions.to(first).reshape(-1, *[1] * (first.dim() - 1)))


def between(first: Condition, last: Condition, fractions: Float[Tensor, " b"]) -> Condition:
    """Token states and pooled features on the way from one condition to another, row by row."""
    assert first.mask is None and last.mask is None, "masks cannot be mixed"
    return Condition(**{name: lerp(part, last.parts[name], fractions) for name, part in first.parts.items()})
