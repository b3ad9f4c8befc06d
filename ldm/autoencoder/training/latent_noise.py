"""Noise on latents, so that a decoder learns to see through the errors that a denoiser leaves in them."""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import randomness


def draw(
    limit: float, rows: slice, count: int, shape: tuple[int, int, int], seed: int, step: int
) -> Float[Tensor, "b c h w"]:
    """Normal noise for `rows` of the `count` images of a step, of another standard deviation for each image, uniform
    between 0 and `limit`."""
    deviations = limit * torch.rand(count, generator=randomness.generator(seed, "latent noise deviation", step))
    return deviations[rows, None, None, None] * randomness.normal(rows, shape, seed, "latent noise", step)
