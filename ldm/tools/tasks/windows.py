"""MultiDiffusion: a denoiser of latents larger than those of the network, made of its answers on windows."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser


def windowed(denoise: Denoiser, size: tuple[int, int], stride: int) -> Denoiser:
    """A denoiser of latents of any larger size: z0_hat is averaged over all windows that cover a cell (Bar-Tal et al.
    2023, equation 5; samplers are linear in z0_hat, so it is all the same which is averaged, z0_hat or the step).

    A network with a learned position embedding is tied to one size. Its windows are of that size, so it sees nothing
    but what it was trained on; what is further apart than a window, it cannot bring into agreement.

    size: height and width of a window. stride: distance of windows in cells; the last ones end at the border.
    """

    def joined(z: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        total, count = torch.zeros_like(z), torch.zeros_like(z[:1, :1])
        for y in starts(z.shape[2], size[0], stride):
            for x in starts(z.shape[3], size[1], stride):
                window = (..., slice(y, y + size[0]), slice(x, x + size[1]))
                total[window] += denoise(z[window], t)
                count[window] += 1
        return total / count

    return joined


def leave_gaps(length: int, window: int, stride: int) -> bool:
    """Whether there are cells between windows, which none covers."""
    return any(after - before > window for before, after in pairwise(starts(length, window, stride)))


def starts(length: int, window: int, stride: int) -> Sequence[int]:
    """Where windows start along a side."""
    assert length >= window, f"{length} cells are less than a window of {window}"
    return [*range(0, length - window, stride), length - window]
