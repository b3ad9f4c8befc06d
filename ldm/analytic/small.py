"""Networks for data of a few dimensions, trained in seconds: what needs training and not the pipeline's networks."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

_NUM_FREQUENCIES = 4


class SmallNetwork(nn.Module):
    """A perceptron on the time and rows of numbers, in float64; equal seeds give equal weights."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int, seed: int) -> None:
        super().__init__()
        sizes = [num_inputs + 2 * _NUM_FREQUENCIES + 1, width, width, num_outputs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList([nn.Linear(a, b).double() for a, b in pairwise(sizes)])

    def forward(self, t: Float[Tensor, " b"], *inputs: Float[Tensor, "b _"]) -> Float[Tensor, "b out"]:
        """inputs: rows that together have `num_inputs` entries."""
        angles = t[:, None] * math.pi * 2.0 ** torch.arange(_NUM_FREQUENCIES, dtype=t.dtype)
        x = torch.cat([*inputs, t[:, None], angles.sin(), angles.cos()], 1)
        for layer in self.layers[:-1]:
            x = nn.functional.silu(layer(x))
        return self.layers[-1](x)


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[torch.Generator], Float[Tensor, ""]],
    num_steps: int,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Adam with a learning rate that falls to 0 as a cosine; returns the loss of every step.

    loss: of one step, a function of the generator that all its random numbers come from.
    """
    optimizer, generator = torch.optim.Adam(parameters, lr=learning_rate), torch.Generator().manual_seed(seed)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    history: list[float] = []
    for _ in range(num_steps):
        value = loss(generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        falling.step()
        history.append(value.item())
    return history
