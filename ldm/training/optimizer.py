"""AdamW for all trainings: its learning rate, the decay of averaged weights, and updates that are skipped."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.training.params import TrainingParams


def learning_rate_at(step: int, params: TrainingParams) -> float:
    """Learning rate of the update from `step` to `step + 1`: linear warm-up, then half a cosine (Loshchilov and Hutter
    2017)."""
    if step < params.num_warmup_steps:
        return params.learning_rate * (step + 1) / params.num_warmup_steps
    progress = (step - params.num_warmup_steps) / (params.num_steps - params.num_warmup_steps)
    floor = params.final_learning_rate_fraction
    return params.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def ema_decay_at(step: int, params: TrainingParams) -> float:
    """Decay of the averaged weights at the update from `step` to `step + 1`: lower at first, to forget the start."""
    return min(params.ema_decay, (1 + step) / (10 + step))


class AdamW(torch.optim.AdamW):
    """AdamW whose fused kernel leaves weights, moments and step counts unchanged if `found_inf` is 1."""

    found_inf: Tensor


def build(weights: Sequence[nn.Parameter], params: TrainingParams) -> AdamW:
    """AdamW over the weights, of which matrices and kernels decay, and vectors (norms, biases) do not."""
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": params.weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], betas=params.betas, fused=True)
