"""The sole door to attention kernels: `use` resolves the backend once per process, every network calls `attend`."""

import logging
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.errors import MachineError

Backend = Literal["auto", "xformers", "sdpa", "math"]

# In bf16, forward and backward: 5 times faster than the fused kernel at 64 tokens, 1.4 at 256, 0.6 at 1024.
# In fp32 it is never faster.
LONGEST_WRITTEN_OUT_TOKENS = 256


def math(
    q: Float[Tensor, "b k n d"], k: Float[Tensor, "b k m d"], v: Float[Tensor, "b k m d"]
) -> Float[Tensor, "b k n d"]:
    """softmax(q k^T / sqrt(d)) v, written out: the reference (Vaswani et al. 2017, equation 1).

    Holds all b k n m weights in memory.
    """
    weights = torch.softmax(q @ (k * q.shape[-1] ** -0.5).transpose(-1, -2), dim=-1)
    return weights.to(v.dtype) @ v


def sdpa(
    q: Float[Tensor, "b k n d"], k: Float[Tensor, "b k m d"], v: Float[Tensor, "b k m d"]
) -> Float[Tensor, "b k n d"]:
    """The same by PyTorch's fused kernels."""
    return functional.scaled_dot_product_attention(q, k, v)


def xformers(
    q: Float[Tensor, "b k n d"], k: Float[Tensor, "b k m d"], v: Float[Tensor, "b k m d"]
) -> Float[Tensor, "b k n d"]:
    """The same by xformers' fused kernels, which want the tokens before the heads."""
    from xformers import ops

    if torch.is_autocast_enabled(q.device.type):
        # xformers is unknown to autocast, and its kernels refuse a mix of types.
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    out: Any = ops.memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def math_or_sdpa(
    q: Float[Tensor, "b k n d"], k: Float[Tensor, "b k m d"], v: Float[Tensor, "b k m d"]
) -> Float[Tensor, "b k n d"]:
    """The faster of both on CPUs, where the fused kernel's backward pass is slow on short sequences in bf16."""
    is_short = q.shape[2] * k.shape[2] <= LONGEST_WRITTEN_OUT_TOKENS**2
    return (math if is_short and q.dtype == torch.bfloat16 and q.requires_grad else sdpa)(q, k, v)


_BACKENDS = {"math": math, "sdpa": sdpa, "xformers": xformers, "math+sdpa": math_or_sdpa}
_active = sdpa


def use(backend: Backend, device: torch.device) -> str:
    """Resolve the backend for this process and return its name: xformers, sdpa, math or math+sdpa.

    `auto` takes PyTorch's kernels: as fast as xformers' on current GPUs, and the only fused ones elsewhere; on a CPU it
    trains short bf16 sequences with math (math+sdpa). A tiny forward and backward pass proves a backend first.

    Raises:
        MachineError: the named backend cannot run on `device`.
    """
    global _active
    name = backend
    if backend == "auto":
        name = "math+sdpa" if device.type == "cpu" else "sdpa"
    reason = _refusal(name, device)
    if reason is not None:
        raise MachineError(
            "machine.attention",
            f"{name} cannot run on {device.type} ({reason})",
            "a backend that runs here",
            "set it to auto, which falls back to PyTorch's kernels",
        )
    _active = _BACKENDS[name]
    return name


def active() -> str:
    """Name of the backend in use, as `use` returned it."""
    return next(name for name, function in _BACKENDS.items() if function is _active)


def attend(
    q: Float[Tensor, "b k n d"], k: Float[Tensor, "b k m d"], v: Float[Tensor, "b k m d"]
) -> Float[Tensor, "b k n d"]:
    """softmax(q k^T / sqrt(d)) v by the backend that `use` resolved; before any call of `use`, by PyTorch's kernels."""
    return _active(q, k, v)


def kernels_of_others() -> AbstractContextManager[object]:
    """For networks of other packages, which call PyTorch's attention themselves: while entered, that call is written
    out where `attend` trains with math, for the same reason."""
    return sdpa_kernel(SDPBackend.MATH) if _active in (math, math_or_sdpa) else nullcontext()


def _refusal(name: str, device: torch.device) -> str | None:
    """Why a backend cannot train on `device`, or None."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    q, k, v = torch.ones(3, 1, 2, 8, 32, device=device, requires_grad=True).unbind()
    try:
        with warnings.catch_warnings(action="ignore"):
            _BACKENDS[name](q, k, v).sum().backward()
    except (ImportError, NotImplementedError, RuntimeError, OSError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
