"""Scaled and turned latents, which should decode to scaled and turned images (Kouzelis et al. 2025)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from ldm import randomness
from ldm.autoencoder.model.network import LOG_VARIANCE_RANGE, Posterior
from ldm.autoencoder.training.loss_params import EquivarianceParams

_NUM_TURNS = 4


def draw(
    params: EquivarianceParams, size: tuple[int, int], count: int, seed: int, step: int
) -> tuple[tuple[int, int], Int64[Tensor, " b"]] | None:
    """Height and width that the latents of a step are scaled to, and a number of quarter turns per sample; None for a
    step without.

    size: height and width of the latents. Images that are not square are turned by halves only, since they keep their
    shape in a batch.
    """
    generator = randomness.generator(seed, "equivariance", step)
    is_on, place = torch.rand(2, generator=generator).tolist()
    if is_on >= params.probability:
        return None
    turns = torch.randint(_NUM_TURNS, (count,), generator=generator)
    scale = params.min_scale + (1 - params.min_scale) * place
    return scaled_size(size, scale), turns if size[0] == size[1] else turns // 2 * 2


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width, scaled and rounded, at least 1."""
    height, width = (max(1, round(scale * side)) for side in size)
    return height, width


def scaled(posterior: Posterior, size: torch.Size) -> Posterior:
    """The posterior with means and standard deviations scaled to this height and width."""
    if posterior.mean.shape[2:] == size:
        return posterior
    std = resized(torch.exp(0.5 * posterior.log_variance), size)
    least = torch.finfo(std.dtype).tiny
    log_variance = 2 * torch.log(std.clamp(min=least))
    return Posterior(resized(posterior.mean, size), log_variance.clamp(*LOG_VARIANCE_RANGE))


def resized(x: Float[Tensor, "b c h w"], size: torch.Size) -> Float[Tensor, "b c h2 w2"]:
    """Scaled to this height and width by averages with triangular weights; the same tensor if that is its size.

    As matrix products, since the gradients of torch's own resizing add up in varying order on a GPU.
    """
    if x.shape[2:] == size:
        return x
    rows, columns = (_weights(old, new, x.device) for old, new in zip(x.shape[2:], size, strict=True))
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x.float() @ columns.T


def _weights(old: int, new: int, device: torch.device) -> Float[Tensor, "new old"]:
    """Weights of the old positions at each new one."""
    unit = torch.eye(old, device=device)[None, None]
    return functional.interpolate(unit, size=(new, old), mode="bilinear", align_corners=False, antialias=True)[0, 0]


def turned(x: Float[Tensor, "b c h w"], turns: Int64[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Each sample turned counterclockwise by its number of quarter turns; one that is not square by half turns."""
    is_square = x.shape[2] == x.shape[3]
    ways = torch.stack([torch.rot90(x, k if is_square else k // 2 * 2, (2, 3)) for k in range(_NUM_TURNS)])
    return ways[turns, torch.arange(len(x), device=x.device)]
