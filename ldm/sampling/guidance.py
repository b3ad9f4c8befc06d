"""Classifier-free guidance: one denoiser made of two."""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser


def guide(
    conditional: Denoiser, unconditional: Denoiser, guidance_scale: float, interval: tuple[float, float]
) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, equation 6, with scale 1 + w) at times within `interval`.

    z0_hat = unconditional + guidance_scale (conditional - unconditional). Scale 1 is the conditional denoiser, 0 the
    unconditional one. The interval includes its ends; outside it there is no guidance, and the unconditional denoiser
    is not called (Kynkaanniemi et al. 2024).
    """
    if guidance_scale == 1:
        return conditional
    low, high = interval

    def denoise(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        z0_hat = conditional(z, t)
        inside = (t >= low) & (t <= high)
        if (low, high) != (0, 1) and not bool(inside.any()):
            return z0_hat
        base = unconditional(z, t)
        return torch.where(inside.reshape(-1, 1, 1, 1), base + guidance_scale * (z0_hat - base), z0_hat)

    return denoise
