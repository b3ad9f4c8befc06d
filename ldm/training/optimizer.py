"""AdamW for all trainings: its learning rate, the decay of averaged weights, and updates that are skipped."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm.compute.process import Accelerator
from ldm.training.params import AdversaryParams, TrainingParams

ADVERSARY = "adversary."
"""What the names of an adversary's weights start with."""


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


class Optimizers:
    """AdamW for the weights of an objective, and another one for its adversary, if it has one. Every update is taken by
    both, or by neither."""

    def __init__(
        self, weights: Mapping[str, nn.Parameter], params: TrainingParams, adversary: AdversaryParams | None
    ) -> None:
        """weights: name -> weight. Those of the adversary have names that start with `ADVERSARY`."""
        self._params, self._adversary = params, adversary
        self._weights = [weight for name, weight in weights.items() if not name.startswith(ADVERSARY)]
        self._theirs = [weight for name, weight in weights.items() if name.startswith(ADVERSARY)]
        assert bool(self._theirs) == (adversary is not None), "an adversary has weights and params, or neither"
        self._optimizer = _adamw(self._weights, params.betas, params.weight_decay)
        self._opponent = _adamw(self._theirs, adversary.betas, 0.0) if adversary else None

    def update(self, step: int, accelerator: Accelerator) -> tuple[Tensor, dict[str, Tensor]]:
        """Take the update from `step` to `step + 1`, or none at all if a gradient is not finite, and forget gradients.

        Returns whether it was taken, a bool scalar on the device, and the norms of the gradients: `grad_norm` and
        `adversary_grad_norm`.
        """
        rate = learning_rate_at(step, self._params)
        norms = {"grad_norm": _clip(self._weights, self._params.max_grad_norm, accelerator)}
        if self._adversary is not None:
            norms["adversary_grad_norm"] = _clip(self._theirs, self._adversary.max_grad_norm, accelerator)
        # A norm is finite only if all gradients are. The fused kernels read the verdict on the device.
        is_good = torch.isfinite(sum(norms.values(), torch.zeros_like(norms["grad_norm"])))
        _take(self._optimizer, rate, is_good)
        if self._opponent is not None and self._adversary is not None:
            if step >= self._adversary.start_step:
                _take(self._opponent, self._adversary.learning_rate * rate / self._params.learning_rate, is_good)
            self._opponent.zero_grad()
        self._optimizer.zero_grad()
        return is_good, norms

    def moments(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Moments and step count of a weight, by name; empty before its first update. What is put into it is used."""
        is_theirs = any(weight is other for other in self._theirs)
        optimizer = self._opponent if is_theirs and self._opponent is not None else self._optimizer
        return optimizer.state[weight]


def _adamw(weights: Sequence[nn.Parameter], betas: tuple[float, float], weight_decay: float) -> AdamW:
    """AdamW over the weights, of which matrices and kernels decay, and vectors (norms, biases) do not."""
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], betas=betas, fused=True)


def _clip(weights: Sequence[nn.Parameter], max_norm: float, accelerator: Accelerator) -> Tensor:
    """Scale gradients down to the norm; returns the norm that they had."""
    norm = accelerator.clip_grad_norm_(list(weights), max_norm)
    assert norm is not None
    return norm


def _take(optimizer: AdamW, learning_rate: float, is_good: Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.found_inf = (~is_good).float()
    optimizer.step()
