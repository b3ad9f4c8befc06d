"""Training steps that benchmarks measure: of our networks and of diffusers' UNet, in one and the same loop.

A step is a forward pass under autocast, the loss, the backward pass, clipping, fused AdamW, and the average of the
weights by `foreach`, as in `ldm.training`. The data are random and stay the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.measuring import DEVICE, PARAMS, Side
from ldm.autoencoder.model.networks import build as build_autoencoder
from ldm.autoencoder.training.objective import ReconstructionObjective
from ldm.autoencoder.training.params import TrainAutoencoderParams, TrainedAutoencoderParams
from ldm.compute import attention, compilation
from ldm.compute.precision import DTYPES, autocast, choose, let_mkl_choose_its_code, possible
from ldm.core import config
from ldm.core.params import MachineParams, Precision
from ldm.corpora.params import PrepareParams
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.networks import build as build_unet
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet
from ldm.denoiser.training.params import TrainUNetParams

NUM_TOKENS = 24
"""Of the longest caption of the default corpus."""
Forward = Callable[[], Tensor]
"""A forward pass and its loss."""

_SD1: dict[str, Any] = {
    "channels": [320, 640, 1280, 1280],
    "num_res_blocks": 2,
    "attention_levels": [True, True, True, False],
    "num_transformer_layers": 1,
    "head_width": [40, 80, 160, 160],
    "linear_projection": False,
    "context_width": 768,
    "norm_groups": 32,
    "num_context_layers": 0,
    "position_embedding": False,
}


@dataclass(frozen=True)
class Shape:
    """A UNet, the images of a step, and the tokens of their captions."""

    name: str
    params: UNetParams
    num_images: int
    num_tokens: int

    def of_diffusers(self) -> "Shape":
        """Without what diffusers' UNet does not have."""
        return replace(self, params=_changed(self.params, num_context_layers=0, position_embedding=False))

    def data(self) -> dict[str, Tensor]:
        """Latents, times, tokens and what is to be predicted."""
        params, n = self.params, self.num_images
        z, target = torch.randn(2, n, params.latent_channels, params.latent_size, params.latent_size, device=DEVICE)
        context = torch.randn(n, self.num_tokens, params.context_width, device=DEVICE)
        return {"z": z, "target": target, "time": 1000 * torch.rand(n, device=DEVICE), "context": context}


def _changed(params: UNetParams, **changes: Any) -> UNetParams:
    return UNetParams.model_validate({**params.model_dump(), **changes})


def default(num_images: int | None = None, **changes: Any) -> Shape:
    """The UNet of the default recipe, with changed params. num_images: by default those of a pass of its training."""
    section = config.read(TrainUNetParams, "train_unet", PARAMS)
    training = section.training
    own = training.batch_size // training.num_accumulation_steps
    assert isinstance(section.network, UNetParams), "the only kind that there is"
    params = _changed(section.network, **changes)
    return Shape("default", params, num_images or own, min(NUM_TOKENS, params.max_context_tokens))


def small() -> Shape:
    """The same with few channels, and two images: to see that a benchmark runs."""
    shape = default(2)
    return replace(shape, params=_changed(shape.params, channels=[32, 64], head_width=32, norm_groups=8))


def precision() -> Precision:
    """That of `train_unet`; for auto what it comes to here."""
    params = config.read(TrainUNetParams, "train_unet", PARAMS)
    asked = params.training.precision
    return choose(build_unet(params.network), DEVICE)[0] if asked == "auto" else asked


def precisions() -> tuple[Precision, ...]:
    """Those to measure: on a CPU without kernels for bf16 float32 alone, since emulated products take minutes."""
    return possible("auto", DEVICE) if DEVICE.type == "cpu" else tuple(DTYPES)


def as_trainings_compute() -> None:
    """Choose attention and the code of MKL as a training with the default's params does. Nothing must have multiplied
    before."""
    let_mkl_choose_its_code("auto")
    attention.select("auto", DEVICE)


def machine() -> MachineParams:
    """Section machine of the default recipe."""
    return config.read(MachineParams, "machine", PARAMS)


def stable_diffusion(latent_size: int, num_images: int) -> Shape:
    """The UNet of Stable Diffusion 1 with 77 tokens."""
    return Shape(f"sd1_{latent_size}", default(**_SD1, latent_size=latent_size).params, num_images, 77)


def ours(params: UNetParams) -> UNet:
    """Our UNet, made where it is used: on a CPU the weights of Stable Diffusion's take ten seconds."""
    with DEVICE:
        return cast(UNet, build_unet(params))


def theirs(params: UNetParams) -> nn.Module:
    """diffusers' UNet of the same topology."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kinds = ["CrossAttn" if attends else "" for attends in params.attention_levels]
    # Their name for the number of heads; their annotation says one level.
    heads = tuple(width // head for width, head in zip(params.channels, params.head_widths, strict=True))
    with DEVICE:
        unet = UNet2DConditionModel(
            in_channels=params.latent_channels,
            out_channels=params.latent_channels,
            block_out_channels=tuple(params.channels),
            layers_per_block=params.num_res_blocks,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            transformer_layers_per_block=params.num_transformer_layers,
            attention_head_dim=heads,  # pyright: ignore[reportArgumentType]
            use_linear_projection=params.linear_projection,
            cross_attention_dim=params.context_width,
            norm_num_groups=params.norm_groups,
        )
    return cast(nn.Module, unet)


def our_loss(unet: nn.Module, data: dict[str, Tensor]) -> Forward:
    """Mean squared error of our UNet."""
    condition = Condition(data["context"])
    return lambda: (unet(data["z"], data["time"], condition).float() - data["target"]).square().mean()


def their_loss(unet: nn.Module, data: dict[str, Tensor]) -> Forward:
    """The same of diffusers'."""
    given = data["z"], data["time"], data["context"]
    return lambda: (unet(*given).sample.float() - data["target"]).square().mean()


def step(model: nn.Module, forward: Forward, precision: Precision) -> Side:
    """A training step of `model`."""
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    averages, detached = [weight.detach().clone() for weight in weights], [weight.detach() for weight in weights]
    average = get_ema_multi_avg_fn(0.998)

    def update() -> None:
        with autocast(DEVICE, precision):
            loss = forward()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average(averages, detached, 0)

    return update


def unet_step(shape: Shape, precision: Precision) -> Side:
    """A step of our UNet, computed as section machine says."""
    unet = ours(shape.params)
    compilation.prepare(machine(), unet)
    return step(unet, our_loss(unet, shape.data()), precision)


def autoencoder(num_images: int | None) -> tuple[ReconstructionObjective, dict[str, Tensor]]:
    """The autoencoder of the default recipe with its loss, and a batch. num_images: by default those of a pass of its
    training."""
    section = config.read(TrainAutoencoderParams, "train_autoencoder", PARAMS)
    source, side_px = section.source, config.read(PrepareParams, "prepare", PARAMS).image_size_px
    assert isinstance(source, TrainedAutoencoderParams) and source.reconstruction and source.training
    rows = num_images or source.training.batch_size // source.training.num_accumulation_steps
    side = side_px // source.factor
    batch = {
        "image": torch.randint(256, (rows, 3, side_px, side_px), dtype=torch.uint8, device=DEVICE),
        "noise": torch.randn(rows, source.latent_channels, side, side, device=DEVICE),
    }
    return ReconstructionObjective(build_autoencoder(source.network), source.reconstruction).to(DEVICE), batch


def autoencoder_step(precision: Precision, num_images: int | None = None) -> Side:
    """The same of our autoencoder."""
    objective, batch = autoencoder(num_images)
    compilation.prepare(machine(), objective)
    return step(objective, lambda: objective(batch)["loss"], precision)


def flops(side: Side) -> int:
    """Floating-point operations of the matrix products and convolutions of a call, as torch counts them; those of fused
    attention on a CPU, which torch leaves out, are as many as of attention written out."""
    with FlopCounterMode(display=False, custom_mapping=_FUSED_ON_CPUS) as counter:
        side()
    return counter.get_total_flops()


def _fused(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    """Two products."""
    return sdpa_flop_count(query, key, value)


def _fused_backwards(
    _grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    """Two for each of them; scores that the kernel computes again do not count."""
    return 2 * sdpa_flop_count(query, key, value)


_FUSED_ON_CPUS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backwards,
}


def probe(dtype: torch.dtype) -> tuple[Side, int]:
    """A product of two square matrices that fit the machine's best pace, and its operations."""
    size = 8192 if DEVICE.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=DEVICE).to(dtype)
    return lambda: a @ b, 2 * size**3
