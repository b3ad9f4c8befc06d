"""Muon, the optimizer of matrices: momentum whose singular values are all made about one (Jordan et al. 2024, "Muon: An
optimizer for hidden layers in neural networks")."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from ldm.compute import ranks

MOMENTUM = "momentum"
"""Name of the only moment that it keeps."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree 5 that each iteration applies to the singular values: those of the authors, which
lift small values fastest, and leave all between about 0.7 and 1.2."""
_EPS = 1e-7
_RMS = 0.2
"""Root mean square of the entries of an AdamW update, in learning rates, as measured by Liu et al. 2025."""
_LEAST_SIDE = 32
_EMBEDDINGS = ("embedding", "positions")
"""Parts of the names of weights that are looked up, or embed the time."""


def is_for_matrices(name: str, weight: nn.Parameter) -> bool:
    """Whether Muon is for this weight: a matrix, or a kernel as a matrix of one row per output channel, with at least
    32 rows and columns, that is no embedding."""
    sides = weight.flatten(1).shape if weight.dim() > 1 else (0,)
    return min(sides) >= _LEAST_SIDE and not any(part in name for part in _EMBEDDINGS)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, without weight decay.

    torch's own Muon takes no kernels, and cannot skip an update without waiting for the device. If `found_inf` is 1,
    weights and momentum stay unchanged.

    An update is scaled by 0.2 sqrt(larger side), so that its entries are about as large as AdamW's at the same rate
    (Liu et al. 2025, "Muon is Scalable for LLM Training", equation 4).
    """

    found_inf: Tensor
    dtype: torch.dtype
    """Of its products. bf16 is enough (Jordan et al. 2024), but a CPU without units for it takes 17 times as long as in
    float32."""

    def __init__(self, weights: Iterable[nn.Parameter], momentum: float, num_iterations: int) -> None:
        super().__init__([{"params": list(weights)}], {"lr": 0.0})
        self._momentum, self._num_iterations = momentum, num_iterations

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all weights by their gradients, which every process has."""
        for group in self.param_groups:
            weights: list[nn.Parameter] = sorted(group["params"], key=_matrix_shape)
            # All of one shape at once, since a GPU waits for every call.
            alike = [list(each) for _, each in groupby(weights, key=_matrix_shape)]
            directions = [self._directions(each).to(self.dtype) for each in alike]
            for each, updates in zip(alike, _orthogonalised_together(directions, self._num_iterations), strict=True):
                self._update(each, updates, group["lr"] * _RMS * max(updates.shape[1:]) ** 0.5)

    def _directions(self, weights: Sequence[nn.Parameter]) -> Float[Tensor, "b r c"]:
        """The momenta that gradients lead to, looked ahead by one step (Nesterov)."""
        momenta = [self._momentum_of(weight) for weight in weights]
        gradients, before = _matrices(_gradient(weight) for weight in weights), _matrices(momenta)
        # Selected, not multiplied by zero, which would leave what is not finite.
        after = torch.where(self.found_inf > 0, before, before.lerp(gradients, 1 - self._momentum))
        for momentum, own in zip(momenta, after, strict=True):
            momentum.copy_(own.view_as(momentum))
        return gradients.lerp(after, self._momentum)

    def _update(self, weights: Sequence[nn.Parameter], updates: Float[Tensor, "b r c"], rate: float) -> None:
        updates = torch.where(self.found_inf > 0, 0, updates).to(weights[0].dtype)
        for weight, update in zip(weights, updates, strict=True):
            weight.sub_(update.view_as(weight), alpha=rate)

    def _momentum_of(self, weight: nn.Parameter) -> Tensor:
        state: dict[str, Tensor] = self.state[weight]
        return state.setdefault(MOMENTUM, torch.zeros_like(weight))


def orthogonalised(matrices: Float[Tensor, "b r c"], num_iterations: int) -> Float[Tensor, "b r c"]:
    """The nearest matrices with orthonormal rows or columns, roughly: their singular values are between about 0.7 and
    1.2, if they were not tiny beside the largest. By Newton-Schulz iterations of degree 5, in the matrices' type."""
    rows, columns = matrices.shape[1:]
    x = matrices if rows <= columns else matrices.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)
    a, b, c = _COEFFICIENTS
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if rows <= columns else x.mT


def _orthogonalised_together(
    stacks: Sequence[Float[Tensor, "b r c"]], num_iterations: int
) -> Sequence[Float[Tensor, "b r c"]]:
    """All matrices of all stacks, orthogonalised: each by one of the processes, in turn, and sent to the others."""
    if ranks.count() == 1 or not stacks:
        return [orthogonalised(stack, num_iterations) for stack in stacks]
    found, first = [torch.zeros_like(stack) for stack in stacks], distributed.get_rank()
    for stack, to in zip(stacks, found, strict=True):
        own = slice(first, None, ranks.count())
        to[own] = orthogonalised(stack[own], num_iterations)
        first = (first - len(stack)) % ranks.count()
    flat = torch.cat([stack.flatten() for stack in found])
    distributed.all_reduce(flat)  # each adds its own to the zeros of the others
    parts = flat.split([stack.numel() for stack in stacks])
    return [part.view_as(stack) for part, stack in zip(parts, stacks, strict=True)]


def split(weights: Mapping[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights that Muon is for, and the others."""
    matrices = [weight for name, weight in weights.items() if is_for_matrices(name, weight)]
    others = [weight for name, weight in weights.items() if not is_for_matrices(name, weight)]
    return matrices, others


def _matrix_shape(weight: nn.Parameter) -> tuple[int, int]:
    rows, columns = weight.flatten(1).shape
    return rows, columns


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _matrices(tensors: Iterable[Tensor]) -> Float[Tensor, "b r c"]:
    return torch.stack([each.flatten(1) for each in tensors])
