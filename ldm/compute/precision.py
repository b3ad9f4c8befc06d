"""Number types of products by name, autocast to them, and which of them is the faster one for a network."""

import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.core.params import AskedPrecision, Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The type of matrix products and convolutions; weights, sums and outputs of networks stay float32."""
CLEARLY = 1.15
"""How many times as fast as bf16 fp32 must be for `auto` to take it. Kinds of CPU lie far from it on both sides, so
that chance does not decide."""
_NUM_ROUNDS = 5
_MKL_CODE = "MKL_CBWR"

Module = TypeVar("Module", bound=nn.Module)


def dtype_of(precision: AskedPrecision) -> torch.dtype:
    """The type of products in a precision, which is settled: what auto comes to is, before anything is computed."""
    assert precision != "auto", "what auto comes to is settled before anything is computed"
    return DTYPES[precision]


def autocast(device: torch.device, precision: AskedPrecision, *, keeps_casts: bool = True) -> torch.autocast:
    """Context with matrix products and convolutions in `precision`; fp32 also disables an enclosing autocast.

    keeps_casts: keep each weight as it was cast until the context ends, for all who use it. If a network is split over
        processes, that would be a whole one on each.
    """
    return torch.autocast(device.type, dtype_of(precision), enabled=precision != "fp32", cache_enabled=keeps_casts)


def cast_products(network: Module, precision: Precision) -> Module:
    """A copy that holds the weights of its linear maps and convolutions as autocast to `precision` makes them at every
    call, so that many calls need it once. Inside that autocast, its outputs are equal in every bit."""
    network = copy.deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(DTYPES[precision])
    return network


def possible(precision: AskedPrecision, device: torch.device) -> tuple[Precision, ...]:
    """What a precision may come to on a device: on a CPU a measurement decides about auto."""
    if precision != "auto":
        return (precision,)
    return tuple(DTYPES) if is_measured(device) else (_of_units(device)[0],)


def is_measured(device: torch.device) -> bool:
    """Whether a measurement decides what `auto` comes to: on a CPU for which oneDNN has kernels for bf16. Without them
    torch takes about ten times as long as in float32."""
    has_kernels = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type == "cpu" and bool(has_kernels)


class Rates(NamedTuple):
    """GFLOP/s of the two kinds of product of which networks are made, forwards and backwards."""

    convolution: float
    linear: float

    def of(self, network: nn.Module) -> float:
        """GFLOP/s of a network's own mix of products: each weight takes part in equally many."""
        weights = [weight for weight in network.parameters() if weight.ndim > 1]
        kernels = sum(weight.numel() for weight in weights if weight.ndim > 2)
        share = kernels / max(1, sum(weight.numel() for weight in weights))
        return 1 / (share / self.convolution + (1 - share) / self.linear)


def choose(network: nn.Module, device: torch.device) -> tuple[Precision, str]:
    """What `auto` comes to for a network on a device, and why, in words.

    On a GPU bf16, unless it has no units for it. On a CPU fp32 if it has no kernels for bf16, else the faster one: some
    multiply bf16 twice as fast as float32, others more slowly. bf16, unless fp32 is `CLEARLY` faster.
    """
    if is_measured(device):
        return compare({precision: each.of(network) for precision, each in rates().items()})
    return _of_units(device)


def let_mkl_choose_its_code(asked: AskedPrecision) -> None:
    """Take back that MKL computes alike on every kind of CPU (`ldm/__init__.py`), for a training whose precision is
    open on a CPU without kernels for bf16: it trains in float32, where MKL's common code takes twice the time, and its
    bits are those of this kind of CPU anyway. Without effect once MKL has multiplied, or if the user set other code."""
    if asked == "auto" and not is_measured(torch.device("cpu")) and os.environ.get(_MKL_CODE) == "COMPATIBLE":
        os.environ[_MKL_CODE] = "AUTO"


def _of_units(device: torch.device) -> tuple[Precision, str]:
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "auto: this GPU has units for it"
    return "fp32", f"auto: this {device.type} has no units for bf16"


def compare(speeds: Mapping[Precision, float]) -> tuple[Precision, str]:
    """What `auto` comes to where products have these speeds in GFLOP/s, and why."""
    chosen: Precision = "fp32" if speeds["fp32"] >= CLEARLY * speeds["bf16"] else "bf16"
    return chosen, f"auto: {speeds['bf16']:.0f} GFLOP/s in bf16, {speeds['fp32']:.0f} in fp32 per core"


@cache
def rates() -> dict[Precision, Rates]:
    """How fast this CPU multiplies, measured in a tenth of a second, once per process. No random number is drawn.

    One thread, by its own clock, which stands while other programs have the core: on a busy machine the time of day
    would let chance decide. Both precisions take turns, so that what slows the core down meets both; medians.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            convolution = _rates(functional.conv2d, torch.ones(4, 128, 10, 10), torch.ones(128, 128, 3, 3), 4 * 8 * 8)
            linear = _rates(functional.linear, torch.ones(256, 128), torch.ones(512, 128), 256)
    finally:
        torch.set_num_threads(num_threads)
    return {each: Rates(convolution[each], linear[each]) for each in DTYPES}


def _rates(
    product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, num_positions: int
) -> dict[Precision, float]:
    """GFLOP/s of a product that uses every weight at so many positions, forwards and backwards."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    found: dict[Precision, list[float]] = {precision: [] for precision in DTYPES}
    for _ in range(1 + _NUM_ROUNDS):
        for precision, seconds in found.items():
            start = time.thread_time()
            with autocast(x.device, precision):
                out = product(x, weight)
            torch.autograd.grad(out, (x, weight), torch.ones_like(out))
            seconds.append(time.thread_time() - start)
    flops = 3 * 2 * weight.numel() * num_positions  # backwards twice as many as forwards
    # The first round prepares kernels.
    return {precision: flops / 1e9 / statistics.median(seconds[1:]) for precision, seconds in found.items()}
