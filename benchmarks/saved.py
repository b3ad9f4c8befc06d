"""What norms in bf16 save of a GPU's memory: bytes that a forward pass keeps for the backward pass, by count.

`python -m benchmarks.saved` needs no GPU: PyTorch follows types and shapes alone, by the rules that its autocast has
for GPUs. The network is that of recipes/gpu-256.yaml, of Stable Diffusion's size, at batch 256 of 32 x 32 latents.
Attention counts as a fused kernel. Without torch.compile, which keeps less.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.autoencoder.model import blocks
from ldm.compute import attention
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet

STABLE_DIFFUSION = UNetParams(
    kind="unet",
    latent_channels=4,
    channels=[320, 640, 1280, 1280],
    num_res_blocks=2,
    attention_levels=[True, True, True, False],
    num_transformer_layers=1,
    head_width=64,
    linear_projection=True,
    context_width=1024,
    norm_groups=32,
    num_context_layers=2,
    max_context_tokens=77,
    position_embedding=False,
    latent_size=32,
    gradient_checkpointing=False,
)
BATCH_SIZE = 256
_GB = 1e9


class _Fused(torch.autograd.Function):
    """Shapes and types of a fused attention, which keeps its inputs, its output and a number per query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, out.new_empty(out.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise NotImplementedError("nothing is computed here")


def bytes_saved(params: UNetParams, batch_size: int, *, widened: bool) -> int:
    """Bytes that a forward pass on a GPU keeps in bf16 autocast, less the weights. widened: with norms in float32, as
    autocast would have them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()  # pyright: ignore[reportPrivateUsage]
        alive.append(tensor)  # so that no other storage takes its place
        return tensor

    alive: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with gpu(), _norms(widened), _fused_attention():
        network = UNet(params)
        z = torch.empty(batch_size, *network.latent_shape)
        condition = Condition(torch.empty(batch_size, params.max_context_tokens, params.context_width))
        weights = {weight.untyped_storage()._cdata for weight in network.parameters()}  # pyright: ignore[reportPrivateUsage]
        with hooks:
            output = network(z, torch.empty(batch_size), condition)
        assert output.shape == z.shape
    return sum(size for storage, size in kept.items() if storage not in weights)


@contextmanager
def gpu() -> Generator[None]:
    """A GPU that computes nothing, in bf16 autocast. `torch.autocast` itself asks for a real one."""
    with FakeTensorMode(), torch.device("cuda"):
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        torch.autocast_increment_nesting()
        try:
            yield
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
            torch.set_autocast_enabled("cuda", False)


@contextmanager
def _norms(widened: bool) -> Generator[None]:
    ours = blocks.GroupNorm.forward, blocks.LayerNorm.forward
    if widened:
        blocks.GroupNorm.forward, blocks.LayerNorm.forward = nn.GroupNorm.forward, nn.LayerNorm.forward
    try:
        yield
    finally:
        blocks.GroupNorm.forward, blocks.LayerNorm.forward = ours


@contextmanager
def _fused_attention() -> Generator[None]:
    before = attention._selected  # pyright: ignore[reportPrivateUsage]
    attention._selected = lambda q, k, v, mask: _Fused.apply(q, k, v)  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        attention._selected = before  # pyright: ignore[reportPrivateUsage]


def main() -> None:
    widened, kept = (bytes_saved(STABLE_DIFFUSION, BATCH_SIZE, widened=each) for each in (True, False))
    print(f"saved for the backward pass: {widened / _GB:.1f} GB with norms in float32, {kept / _GB:.1f} GB in bf16")
    print(f"ratio saved {widened / kept:.3f}")


if __name__ == "__main__":
    main()
