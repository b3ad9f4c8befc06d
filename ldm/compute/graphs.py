"""Calls of a network as CUDA graphs: a GPU replays kernels that were recorded once, and does not wait for Python."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]

MAX_RECORDED = 16
"""Kinds of calls of one network that are recorded, since each holds memory; others are computed as before."""
_NUM_WARM_UPS = 3
"""Calls in which kernels are chosen and loaded, as PyTorch advises before it records."""
_ONE_AT_A_TIME = RLock()
"""Threads, such as those of the page, share the memory of a recording."""
Forward = Callable[..., Any]


def replay(network: nn.Module) -> None:
    """Make calls of this network record themselves and be replayed, on a GPU; on a CPU they stay as they are.

    A kind of call is recorded when it comes for the second time: shapes and types of its inputs, precision, whether
    gradients are wanted, and where the weights lie. A network must take and return tensors, or collections of tensors
    that PyTorch knows (`torch.utils._pytree`), and its kernels must not depend on their values. There is one way back
    for each call, before the next call (no `retain_graph`, no second derivative).
    """
    if not isinstance(network.forward, Calls):
        network.forward = Calls(network)


class Calls:
    """The calls of one network."""

    def __init__(self, network: nn.Module) -> None:
        self._network, self._plain = network, network.forward
        self._recorded: dict[Any, Forward] = {}
        self._seen: set[Any] = set()
        self._memory: Any = None

    def __call__(self, *inputs: Any) -> Any:
        """What the network makes of the inputs; see `replay`."""
        tensors, structure = pytree.tree_flatten(inputs)
        if not all(map(_is_on_gpu, tensors)):
            return self._plain(*inputs)
        with _ONE_AT_A_TIME:
            kind = self._kind(tensors, structure)
            if kind not in self._recorded and kind in self._seen and len(self._recorded) < MAX_RECORDED:
                self._recorded[kind] = self._record(tensors, structure)
            self._seen.add(kind)
            return self._recorded[kind](*tensors) if kind in self._recorded else self._plain(*inputs)

    def _kind(self, tensors: Sequence[Tensor], structure: pytree.TreeSpec) -> Any:
        """What a recording depends on."""
        shapes = tuple((each.shape, each.dtype, each.stride(), each.requires_grad) for each in tensors)
        places = tuple(weight.data_ptr() for weight in self._network.parameters())
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), self._network.training, *_autocast()
        return shapes, structure, places, modes

    def _record(self, tensors: Sequence[Tensor], structure: pytree.TreeSpec) -> Forward:
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        own = [each.detach().clone().requires_grad_(each.requires_grad) for each in tensors]
        has_gradients = any(each.requires_grad for each in (*own, *self._network.parameters()))

        def call() -> Any:
            return self._plain(*pytree.tree_unflatten(own, structure))

        is_on, dtype = _autocast()
        # Casts are recorded with the rest, so none may be left from before.
        with torch.autocast("cuda", dtype, enabled=is_on, cache_enabled=False):
            if torch.is_grad_enabled() and has_gradients:
                return _with_gradients(self._network, call, own, self._memory)
            return _without_gradients(call, own, self._memory)


def _without_gradients(call: Forward, own: Sequence[Tensor], memory: Any) -> Forward:
    """A call that is replayed; `own` are its inputs from now on. Its result outlives the next one."""
    _warm_up(call)
    graph, result = _recorded(call, memory)

    def replayed(*tensors: Tensor) -> Any:
        _fill(own, tensors)
        graph.replay()
        return pytree.tree_map(torch.clone, result)

    return replayed


@dataclass
class _Pass:
    """Both directions of a call: graphs, and what each of them reads and writes."""

    forwards: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    results: Sequence[Tensor]
    backwards: torch.cuda.CUDAGraph
    result_gradients: Sequence[Tensor | None]
    gradients: Sequence[Tensor | None]
    """Of the inputs, then of the weights."""
    structure: pytree.TreeSpec
    """How the results belong together."""
    num_replays: int = 0
    """In either direction, to tell whether what was computed is still there."""


class _With(nn.Module):
    """A network within which something is computed, so that its weights can be exchanged meanwhile."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, compute: Callable[[], _Pass]) -> _Pass:
        return compute()


def _with_gradients(network: nn.Module, call: Forward, own: Sequence[Tensor], memory: Any) -> Forward:
    """A call that is replayed, whose result has gradients for its inputs and weights, by another graph."""
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    # Of the same memory, but new to PyTorch: DDP, or a result that is still there, ties the others to other streams.
    leaves = {f"network.{name}": weight.detach().requires_grad_() for name, weight in weights.items()}
    record = partial(_both_ways, call, own, list(leaves.values()), memory)
    recorded: _Pass = functional_call(_With(network), leaves, (record,))

    def replayed(*tensors: Tensor) -> Any:
        results: Any = _Replay.apply(recorded, *tensors, *weights.values())
        return pytree.tree_unflatten(results, recorded.structure)

    return replayed


def _both_ways(call: Forward, own: Sequence[Tensor], weights: Sequence[Tensor], memory: Any) -> _Pass:
    """Both graphs of a call; gradients are those of `own`, its inputs, and of the weights."""
    wanted = [each for each in (*own, *weights) if each.requires_grad]

    def gradients_of(results: Iterable[Tensor], given: Iterable[Tensor | None]) -> Iterable[Tensor | None]:
        pairs = [(result, gradient) for result, gradient in zip(results, given, strict=True) if gradient is not None]
        return torch.autograd.grad([r for r, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)

    def in_turn() -> None:
        results = pytree.tree_leaves(call())
        gradients_of(results, [torch.ones_like(each) if each.requires_grad else None for each in results])

    _warm_up(in_turn)
    forwards, result = _recorded(call, memory)
    results, structure = pytree.tree_flatten(result)
    given = [torch.empty_like(each) if each.requires_grad else None for each in results]
    backwards, found = _recorded(lambda: gradients_of(results, given), memory)
    each_found = iter(found)
    gradients = [next(each_found) if each.requires_grad else None for each in (*own, *weights)]
    return _Pass(forwards, own, [each.detach() for each in results], backwards, given, gradients, structure)


class _Replay(torch.autograd.Function):
    """A recorded pass as PyTorch's gradients know it: a function of inputs and weights."""

    @staticmethod
    def forward(ctx: Any, recorded: _Pass, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        recorded.num_replays += 1
        ctx.recorded, ctx.number = recorded, recorded.num_replays
        # A gradient that is to be added to may lie in memory of a graph, which its next replay writes over.
        for tensor in tensors:
            if tensor.is_leaf and tensor.grad is not None:
                tensor.grad = tensor.grad.clone()
        _fill(recorded.inputs, tensors[: len(recorded.inputs)])
        recorded.forwards.replay()
        results = tuple(each.detach() for each in recorded.results)
        pairs = zip(results, recorded.result_gradients, strict=True)
        ctx.mark_non_differentiable(*(result for result, gradient in pairs if gradient is None))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        recorded: _Pass = ctx.recorded
        assert ctx.number == recorded.num_replays, "another replay has written over what this one computed"
        recorded.num_replays += 1
        pairs = zip(recorded.result_gradients, gradients, strict=True)
        _fill(*zip(*((to, given) for to, given in pairs if to is not None), strict=True))
        recorded.backwards.replay()
        return None, *(None if each is None else each.detach() for each in recorded.gradients)


def _warm_up(call: Callable[[], object]) -> None:
    """Calls on a stream of their own, so that none of their work is in flight when a recording begins."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_NUM_WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(side)


def _recorded(call: Callable[[], Any], memory: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The kernels of a call, and what they write."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may prepare batches meanwhile.
    with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
        return graph, call()


def _fill(places: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for to, value in zip(places, values, strict=True):
        to.copy_(value)


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


def _is_on_gpu(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_cuda
