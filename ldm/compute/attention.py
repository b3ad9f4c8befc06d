"""The only module that calls attention kernels: `select` chooses the backend, `prove` tries it on what a run needs, and
every network calls `attend`."""

import logging
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.compute import ranks
from ldm.compute.precision import DTYPES, autocast, possible
from ldm.core.errors import MachineError
from ldm.core.params import AskedPrecision, Precision

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Backend = Literal["auto", "xformers", "sdpa", "cudnn", "math"]


class Shape(NamedTuple):
    """Size of one attention in a network: query tokens, key tokens, and channels per head."""

    num_queries: int
    num_keys: int
    head_width: int


class Need(NamedTuple):
    """One attention of a run."""

    shape: Shape
    precision: Precision
    trains: bool


# In bf16, forward and backward: 5 times faster than the fused kernel at 64 tokens, 1.4 at 256, 0.6 at 1024.
# Forwards alone, as in sampling: a whole UNet at 64 tokens 1.1 times faster; longer ones were not tried.
MAX_MATH_TOKENS, MAX_MATH_TOKENS_FORWARDS = 256, 64
# In fp32, forward and backward: 1.3 to 1.5 times faster at 16 and 24 tokens and at 64 by 24, no faster at 64.
MAX_MATH_TOKENS_FP32 = 40

_TINY = Shape(num_queries=8, num_keys=8, head_width=32)
_LONGEST_REASON = 400
_ON_GPUS = ("sdpa", "cudnn", "xformers")
"""What `auto` chooses from on a GPU; the first one unless another is clearly faster."""
_CLEARLY = 1.1
_NUM_ROWS = 2**16
"""Queries of all heads together that keep a GPU busy while a backend is timed."""
_NUM_TIMED = 5


def math(
    q: Float[Tensor, "b k n d"],
    k: Float[Tensor, "b k m d"],
    v: Float[Tensor, "b k m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b k n d"]:
    """softmax(q k^T / sqrt(d)) v, written out: the reference (Vaswani et al. 2017, equation 1).

    Keys where `mask` is False have weight 0; one at least must be True in every row. Holds all b k n m weights in
    memory.
    """
    weights = q @ (k * q.shape[-1] ** -0.5).transpose(-1, -2)
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None, None], -torch.inf)
    weights = torch.softmax(weights, dim=-1)
    return weights.to(v.dtype) @ v


def sdpa(
    q: Float[Tensor, "b k n d"],
    k: Float[Tensor, "b k m d"],
    v: Float[Tensor, "b k m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b k n d"]:
    """The same by PyTorch's fused kernels."""
    per_key = None if mask is None else mask[:, None, None]  # the same for all heads and queries
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=per_key)


def xformers(
    q: Float[Tensor, "b k n d"],
    k: Float[Tensor, "b k m d"],
    v: Float[Tensor, "b k m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b k n d"]:
    """The same by xformers' fused kernels, which expect the tokens before the heads."""
    from xformers import ops

    if torch.is_autocast_enabled(q.device.type):
        # Autocast does not know xformers, whose kernels refuse mixed types.
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    bias = None if mask is None else _xformers_bias(mask, q)
    out: Any = ops.memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias)
    return out.transpose(1, 2)


def _xformers_bias(mask: Bool[Tensor, "b m"], q: Float[Tensor, "b k n d"]) -> Float[Tensor, "b k n m"]:
    """What xformers adds to scores: 0, or -inf where `mask` is False.

    Its kernels want the type of `q`, and every stride but the last a multiple of 8: hence the longer rows.
    """
    num_keys = mask.shape[1]
    bias = q.new_zeros(len(mask), 1, 1, -(-num_keys // 8) * 8)[..., :num_keys]
    return bias.masked_fill_(~mask[:, None, None], -torch.inf).expand(*q.shape[:3], -1)


def cudnn(
    q: Float[Tensor, "b k n d"],
    k: Float[Tensor, "b k m d"],
    v: Float[Tensor, "b k m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b k n d"]:
    """The same by cuDNN's fused kernels, and by the others of PyTorch where cuDNN has none."""
    if q.device.type != "cuda":
        raise NotImplementedError("cuDNN computes on GPUs of NVIDIA")
    with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
        return sdpa(q, k, v, mask)


_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def math_or_sdpa(
    q: Float[Tensor, "b k n d"],
    k: Float[Tensor, "b k m d"],
    v: Float[Tensor, "b k m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b k n d"]:
    """The faster of the two on CPUs, where the fused kernel is slow on short sequences in bf16, above all backwards."""
    if q.dtype == torch.bfloat16:
        longest = MAX_MATH_TOKENS if q.requires_grad else MAX_MATH_TOKENS_FORWARDS
    else:
        longest = MAX_MATH_TOKENS_FP32 if q.requires_grad else 0
    return (math if q.shape[2] * k.shape[2] <= longest**2 else sdpa)(q, k, v, mask)


_BACKENDS: dict[str, Attend] = {
    "math": math,
    "sdpa": sdpa,
    "cudnn": cudnn,
    "xformers": xformers,
    "math+sdpa": math_or_sdpa,
}
_selected: Attend = sdpa
_candidates: tuple[str, ...] = ()
"""What `prove` may choose from; none unless `auto` left it the choice."""
_needs: set[Need] = set()
"""What a choice has to compute, so far."""


def select(backend: Backend, device: torch.device) -> str:
    """Select the backend of this process and return its name: xformers, sdpa, cudnn, math or math+sdpa.

    `auto` selects PyTorch's kernels, the only fused ones on a CPU, where it trains short bf16 sequences with math
    (math+sdpa); on a GPU `prove` then looks for a faster one. A tiny forward and backward pass proves that the backend
    runs here in at least one precision; `prove` checks what a network needs.

    Raises:
        MachineError: the named backend cannot run on `device`.
    """
    global _selected, _candidates
    name = backend
    if backend == "auto":
        name = "math+sdpa" if device.type == "cpu" else "sdpa"
    reasons = [_refusal(_BACKENDS[name], device, Need(_TINY, precision, True)) for precision in DTYPES]
    if all(reasons):
        raise _unable(name, device.type, reasons[0])
    _selected = _BACKENDS[name]
    _candidates = _ON_GPUS if backend == "auto" and device.type != "cpu" else ()
    _needs.clear()
    return name


def prove(device: torch.device, shapes: Iterable[Shape], precision: AskedPrecision, *, trains: bool) -> None:
    """Run the selected backend on the shapes that a network will need, forwards, and backwards if it `trains`. What a
    backend can compute depends on head width, number of tokens and precision; auto = all that it may come to.

    Where `auto` left the choice open, the fastest one at all shapes so far is selected, and printed with the times. So
    the choice, and with it the last bits, can differ from run to run; a name in `machine.attention` fixes it.

    MachineError: it cannot, with its reason; better now than at the first step or the last picture.
    """
    pairs = product(shapes, possible(precision, device))
    needs = dict.fromkeys(Need(shape, each, trains) for shape, each in pairs)
    if _candidates and needs.keys() - _needs:
        _needs.update(needs)
        _select_fastest(device)
    for need in needs:
        reason = _refusal(_selected, device, need)
        if reason is not None:
            n, m, width = need.shape
            what = f"{'train' if trains else 'compute'} {need.precision}"
            raise _unable(selected(), f"{device.type}: {what}, {n} x {m} tokens, head width {width}", reason)


def _select_fastest(device: torch.device) -> None:
    """Time all candidates that can compute all needs, and select one, the same on every process."""
    global _selected
    able = [name for name in _candidates if not any(_refusal(_BACKENDS[name], device, need) for need in _needs)]
    times = {name: sum(_milliseconds(_BACKENDS[name], device, need) for need in _needs) for name in able}
    name = ranks.from_main(fastest(times)) if able else _candidates[0]
    _selected = _BACKENDS[name]
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        shown = ", ".join(f"{each} {times[each]:.2f} ms" if each in times else f"not {each}" for each in _candidates)
        print(f"attention: {name} (at the shapes of this run: {shown})", flush=True)


def fastest(times: Mapping[str, float]) -> str:
    """The name with the least time, or the first one, if that is not clearly slower: so noise chooses less often."""
    first, best = next(iter(times)), min(times, key=lambda name: times[name])
    return best if times[best] * _CLEARLY < times[first] else first


def selected() -> str:
    """Name of the backend in use: as `select` returned it, if `prove` found no faster one."""
    return _name(_selected)


def _name(backend: Attend) -> str:
    return next(name for name, function in _BACKENDS.items() if function is backend)


def attend(
    q: Float[Tensor, "b k n d"],
    k: Float[Tensor, "b k m d"],
    v: Float[Tensor, "b k m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b k n d"]:
    """softmax(q k^T / sqrt(d)) v by the selected backend; by PyTorch's kernels if none was selected.

    mask: True for the keys that a row may attend to, at least one of them; None = all.
    """
    return _selected(q, k, v, mask)


@contextmanager
def sdpa_as_attend() -> Generator[None]:
    """For networks of other packages, which call PyTorch's attention themselves: inside this block, that call is
    computed by PyTorch's math kernel if `attend` trains with math, for the same reason, with products in the type of
    its inputs.

    By default PyTorch would widen bf16 to float32 there, which costs a CPU a twelfth of a CLIP's training and makes the
    bits depend on MKL's choice of code.
    """
    if _selected not in (math, math_or_sdpa):
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def _refusal(backend: Attend, device: torch.device, need: Need) -> str | None:
    """Why a backend cannot compute this, in one line, or None."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            _pass(backend, _inputs(device, need, num_heads=2), need)
    except (ImportError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
    return None


def _inputs(device: torch.device, need: Need, num_heads: int) -> list[Tensor]:
    """Queries, keys and values of a need, in the memory layout of heads in a network."""
    n, m, width = need.shape
    given: dict[str, Any] = {"device": device, "dtype": DTYPES[need.precision], "requires_grad": need.trains}
    return [torch.ones(1, count, num_heads, width, **given).transpose(1, 2) for count in (n, m, m)]


def _pass(backend: Attend, inputs: Sequence[Tensor], need: Need) -> None:
    """A forward pass, and a backward one if it trains."""
    q, k, v = inputs
    with autocast(q.device, need.precision), torch.set_grad_enabled(need.trains):
        out = backend(q, k, v, None)
    if need.trains:
        out.sum().backward()


def _milliseconds(backend: Attend, device: torch.device, need: Need) -> float:
    """Of the fastest of a few passes over as many heads as keep a GPU busy."""
    inputs = _inputs(device, need, num_heads=max(1, _NUM_ROWS // need.shape.num_queries))
    found: list[float] = []
    for _ in range(_NUM_TIMED):
        torch.cuda.synchronize()
        start = time.perf_counter()
        _pass(backend, inputs, need)
        torch.cuda.synchronize()
        found.append(1000 * (time.perf_counter() - start))
    return min(found)


def _unable(name: str, what: str, reason: str | None) -> MachineError:
    found, fix = f"{name} cannot run on {what} ({reason})", "set it to auto, which selects PyTorch's own kernels"
    return MachineError("machine.attention", found, "a backend that runs here", fix)
