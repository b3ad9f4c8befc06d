"""The only module that calls attention kernels: `select` chooses the backend, and every network calls `attend`."""

import logging
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.compute.precision import DTYPES, autocast
from ldm.core.errors import MachineError
from ldm.core.params import Precision

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Backend = Literal["auto", "xformers", "sdpa", "math"]


class Shape(NamedTuple):
    """Size of one attention in a network: query tokens, key tokens, and channels per head."""

    num_queries: int
    num_keys: int
    head_width: int


# In bf16, forward and backward: 5 times faster than the fused kernel at 64 tokens, 1.4 at 256, 0.6 at 1024.
# In fp32 it is never faster. Forwards alone, as in sampling: a whole UNet at 64 tokens 1.1 times faster; longer ones
# were not tried.
MAX_MATH_TOKENS, MAX_MATH_TOKENS_FORWARDS = 256, 64

_TINY = Shape(num_queries=8, num_keys=8, head_width=32)
_LONGEST_REASON = 400


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


def math_or_sdpa(
    q: Float[Tensor, "b k n d"],
    k: Float[Tensor, "b k m d"],
    v: Float[Tensor, "b k m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b k n d"]:
    """The faster of the two on CPUs, where the fused kernel is slow on short sequences in bf16, above all backwards."""
    is_short = q.shape[2] * k.shape[2] <= (MAX_MATH_TOKENS if q.requires_grad else MAX_MATH_TOKENS_FORWARDS) ** 2
    return (math if is_short and q.dtype == torch.bfloat16 else sdpa)(q, k, v, mask)


_BACKENDS: dict[str, Attend] = {"math": math, "sdpa": sdpa, "xformers": xformers, "math+sdpa": math_or_sdpa}
_selected: Attend = sdpa


def select(backend: Backend, device: torch.device) -> str:
    """Select the backend of this process and return its name: xformers, sdpa, math or math+sdpa.

    `auto` selects PyTorch's kernels: as fast as xformers' on current GPUs, and the only fused ones elsewhere; on a CPU
    it trains short bf16 sequences with math (math+sdpa). A tiny forward and backward pass proves that the backend runs
    here in at least one precision; `prove` checks what a network needs.

    Raises:
        MachineError: the named backend cannot run on `device`.
    """
    global _selected
    name = backend
    if backend == "auto":
        name = "math+sdpa" if device.type == "cpu" else "sdpa"
    reasons = [_refusal(_BACKENDS[name], device, _TINY, precision, trains=True) for precision in DTYPES]
    if all(reasons):
        raise _unable(name, device.type, reasons[0])
    _selected = _BACKENDS[name]
    return name


def prove(device: torch.device, shapes: Iterable[Shape], precision: Precision, *, trains: bool) -> None:
    """Run the selected backend on the shapes that a network will need, forwards, and backwards if it `trains`. What a
    backend can compute depends on head width, number of tokens and precision.

    MachineError: it cannot, with its reason; better now than at the first step or the last picture.
    """
    for shape in shapes:
        reason = _refusal(_selected, device, shape, precision, trains)
        if reason is not None:
            n, m, width = shape
            what = "train" if trains else "compute"
            raise _unable(
                selected(), f"{device.type}: {what} {precision}, {n} x {m} tokens, head width {width}", reason
            )


def selected() -> str:
    """Name of the selected backend, as `select` returned it."""
    return next(name for name, function in _BACKENDS.items() if function is _selected)


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


def _refusal(backend: Attend, device: torch.device, shape: Shape, precision: Precision, trains: bool) -> str | None:
    """Why a backend cannot compute this, in one line, or None."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    n, m, width = shape
    dtype = DTYPES[precision]
    inputs = (torch.ones(1, t, 2, width, device=device, dtype=dtype, requires_grad=trains) for t in (n, m, m))
    q, k, v = (tokens.transpose(1, 2) for tokens in inputs)  # the memory layout of heads in a network
    try:
        with warnings.catch_warnings(action="ignore"):
            with autocast(device, precision), torch.set_grad_enabled(trains):
                out = backend(q, k, v, None)
            if trains:
                out.sum().backward()
    except (ImportError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
    return None


def _unable(name: str, what: str, reason: str | None) -> MachineError:
    found, fix = f"{name} cannot run on {what} ({reason})", "set it to auto, which selects PyTorch's own kernels"
    return MachineError("machine.attention", found, "a backend that runs here", fix)
