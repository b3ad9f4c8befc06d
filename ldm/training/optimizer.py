"""The optimizers of all trainings: learning rates, the decay of averaged weights, and updates that are skipped."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm.compute.precision import dtype_of
from ldm.compute.process import Accelerator
from ldm.core.params import AskedPrecision
from ldm.training import muon, sharding
from ldm.training.muon import MOMENTUM, Muon
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
    """AdamW for the weights of an objective, Muon for its matrices if the params say so, and another AdamW for its
    adversary, if it has one. Every update is taken by all of them, or by none."""

    def __init__(
        self, weights: Mapping[str, nn.Parameter], params: TrainingParams, adversary: AdversaryParams | None
    ) -> None:
        """weights: name -> weight. Those of the adversary have names that start with `ADVERSARY`."""
        self._params, self._adversary = params, adversary
        own = {name: weight for name, weight in weights.items() if not name.startswith(ADVERSARY)}
        self._weights = list(own.values())
        self._theirs = [weight for name, weight in weights.items() if name.startswith(ADVERSARY)]
        assert bool(self._theirs) == (adversary is not None), "an adversary has weights and params, or neither"
        matrices, others = muon.split(own) if params.muon else ([], self._weights)
        self._optimizer = _adamw(others, params.betas, params.weight_decay)
        self._muon = Muon(matrices, params.muon.momentum, params.muon.num_iterations) if params.muon else None
        self._opponent = _adamw(self._theirs, adversary.betas, 0.0) if adversary else None

    def update(
        self, step: int, accelerator: Accelerator, precision: AskedPrecision
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take the update from `step` to `step + 1`, or none at all if a gradient is not finite, and forget gradients.
        The products of Muon are computed in `precision`.

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
        if self._muon is not None and self._params.muon is not None:
            self._muon.dtype = dtype_of(precision)
            _take(self._muon, self._params.muon.learning_rate * rate / self._params.learning_rate, is_good)
            self._muon.zero_grad()
        if self._opponent is not None and self._adversary is not None:
            if step >= self._adversary.start_step:
                _take(self._opponent, self._adversary.learning_rate * rate / self._params.learning_rate, is_good)
            self._opponent.zero_grad()
        self._optimizer.zero_grad()
        return is_good, norms

    def keeps(self, weight: nn.Parameter, moment: str) -> bool:
        """Whether the optimizer of a weight has a moment of this name. AdamW and Muon have others."""
        is_muons = self._muon is not None and any(weight is other for other in _weights_of(self._muon))
        return is_muons == (moment == MOMENTUM)

    def moments(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Moments and step count of a weight, by name; empty before its first update. What is put into it is used."""
        for optimizer in (self._opponent, self._muon):
            if optimizer is not None and any(weight is other for other in _weights_of(optimizer)):
                return optimizer.state[weight]
        return self._optimizer.state[weight]


def _adamw(weights: Sequence[nn.Parameter], betas: tuple[float, float], weight_decay: float) -> AdamW:
    """AdamW over the weights, of which matrices and kernels decay, and vectors (norms, biases) do not."""
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]] or groups, betas=betas, fused=True)


def _clip(weights: Sequence[nn.Parameter], max_norm: float, accelerator: Accelerator) -> Tensor:
    """Scale gradients down to the norm; returns the norm that they had."""
    norm = accelerator.clip_grad_norm_(list(weights), max_norm)
    assert norm is not None
    return sharding.whole(norm)


def _weights_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _take(optimizer: AdamW | Muon, learning_rate: float, is_good: Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.found_inf = (~is_good).float()
    optimizer.step()
