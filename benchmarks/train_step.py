"""One training step of our UNet against a plain loop over diffusers' UNet: same weights, shapes, batch and precision.

Shapes are those of `train_unet` in params.yaml, less the options that diffusers' network does not have. The steps
alternate, so that both see the same machine; medians after a warm-up.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from ldm.compute import attention
from ldm.compute.precision import DTYPES, autocast
from ldm.core import config
from ldm.core.params import Precision
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet
from ldm.denoiser.training.params import TrainUNetParams

NUM_WARMUP_STEPS = 2
Step = Callable[[], None]


def theirs(params: UNetParams) -> nn.Module:
    """diffusers' network of the same topology."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kinds = ["CrossAttn" if attends else "" for attends in params.attention_levels]
    # Their name for the number of heads; their annotation says one level.
    heads = tuple(width // head for width, head in zip(params.channels, params.head_widths, strict=True))
    return UNet2DConditionModel(
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


def training_step(
    model: nn.Module, predict: Callable[..., Tensor], data: dict[str, Tensor], precision: Precision, fused: bool
) -> Step:
    """A step of `model` on fixed data; `fused` is our optimizer's setting, the plain loop takes the default."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused or None)

    def step() -> None:
        with autocast(data["z"].device, precision):
            prediction = predict(data["z"], data["time"], data["context"])
        (prediction.float() - data["target"]).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def medians(steps: dict[str, Step], num_rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of every step, all of them alternating."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-NUM_WARMUP_STEPS, num_rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - begin)
    return {name: median(values) for name, values in seconds.items()}


def main() -> None:
    """Print medians and, per precision, our speed over theirs; the last line is bf16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    section = config.read(TrainUNetParams, "train_unet")
    assert isinstance(section.network, UNetParams), "diffusers has no other network"
    params = section.network.model_copy(update={"num_context_layers": 0, "position_embedding": False})
    batch_size = section.training.batch_size // section.training.num_accumulation_steps
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"{device.type}, {arguments.threads} threads, attention {attention.select('auto', device)}, batch {batch_size}"
    )

    shape = (batch_size, params.latent_channels, params.latent_size, params.latent_size)
    context = torch.randn(batch_size, params.max_context_tokens, params.context_width)
    data = {"z": torch.randn(shape), "target": torch.randn(shape), "time": 1000 * torch.rand(batch_size)}
    data = {name: tensor.to(device) for name, tensor in (data | {"context": context}).items()}
    reference, ours = theirs(params).to(device), UNet(params).to(device)
    ours.load_state_dict(reference.state_dict())
    steps: dict[str, Step] = {}
    for precision in DTYPES:
        steps[f"ours {precision}"] = training_step(
            ours, lambda z, time, context: ours(z, time, Condition(context)), data, precision, fused=True
        )
        steps[f"theirs {precision}"] = training_step(
            reference, lambda *inputs: reference(*inputs).sample, data, precision, fused=False
        )
    seconds = medians(steps, arguments.rounds, device)
    for name, value in seconds.items():
        print(f"{name:12s} {1000 * value:9.1f} ms per step {batch_size / value:9.1f} images/s")
    print(f"ratio train_step_fp32 {seconds['theirs fp32'] / seconds['ours fp32']:.3f}")
    print(f"ratio train_step {seconds['theirs bf16'] / seconds['ours bf16']:.3f}")


if __name__ == "__main__":
    main()
