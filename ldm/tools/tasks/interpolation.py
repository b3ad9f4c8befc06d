"""Between two noises, or between two images that share a noise level."""

import torch
from jaxtyping import Float
from torch import Tensor

_PARALLEL = 1e-4
"""Least sine of an angle by which is divided."""


def slerp(
    first: Float[Tensor, "b c h w"], second: Float[Tensor, "b c h w"], fraction: float
) -> Float[Tensor, "b c h w"]:
    """Spherical interpolation of each row (Shoemake 1985): the direction turns at constant speed, the norm changes at
    constant speed. 0 = first, 1 = second.

    A mean of two noises has less variance than noise, so the network would not know it; what lies on the arc between
    them has the same. Rows that are (nearly) parallel or opposite are mixed linearly.
    """
    a, b = first.flatten(1).double(), second.flatten(1).double()
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    tiny = torch.finfo(a.dtype).tiny
    unit_a, unit_b = a / norm_a.clamp(min=tiny), b / norm_b.clamp(min=tiny)
    angle = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin().clamp(min=_PARALLEL)
    unit = (((1 - fraction) * angle).sin() * unit_a + (fraction * angle).sin() * unit_b) / sine
    on_arc = torch.lerp(norm_a, norm_b, fraction) * unit
    return torch.where(angle.sin() < _PARALLEL, torch.lerp(a, b, fraction), on_arc).to(first).reshape(first.shape)
