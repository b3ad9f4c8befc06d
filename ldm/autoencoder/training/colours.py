"""Images in other colours, so that an autoencoder learns shapes in colours that the corpus does not show them in."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import randomness


def draw(share: float, count: int, seed: int, step: int) -> Float[Tensor, " b"]:
    """Angles in radians by which the hues of the images of a step are turned, uniform over the circle; 0 for all but a
    share of them."""
    is_on, angle = torch.rand(2, count, generator=randomness.generator(seed, "colours", step))
    return torch.where(is_on < share, 2 * math.pi * angle, 0.0)


def turned(signal: Float[Tensor, "b 3 h w"], angles: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Signals in -1..1, their colours turned about the axis of greys, which stay as they are. What falls outside the
    range is cut off."""
    # Rodrigues' formula for the axis (1, 1, 1) / sqrt(3): every row is the one above it, moved by one.
    cos, sin = torch.cos(angles), torch.sin(angles) / 3**0.5
    grey = (1 - cos) / 3
    first = torch.stack([cos + grey, grey - sin, grey + sin], 1)
    rotation = torch.stack([first.roll(k, 1) for k in range(3)], 1)
    with torch.autocast(signal.device.type, enabled=False):
        return torch.einsum("bij,bjhw->bihw", rotation.to(signal), signal).clamp(-1, 1)
