"""50,000 images of 32 x 32 pixels, as FID is measured on: 20 evaluations each, from noise to bytes in host memory.

The network has 35.4 million weights, about those of the DDPM of CIFAR-10 (35.7 million), with cross-attention to one
token; its weights are random, which takes no more and no less time. DDIM's authors report 20 hours for 50,000 images by
1000 steps of DDPM, on a GPU of 2018 (Song et al. 2021, section 1). On a CPU, a few images of a small network.
"""

import argparse
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from benchmarks import measuring, steps
from benchmarks.measuring import DEVICE, Found
from ldm.autoencoder.model.network import to_image
from ldm.compute import attention, compilation
from ldm.compute.precision import autocast
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import Schedule, denoiser
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers.dpm_solver import dpm_solver_pp_2m

NUM_IMAGES, BATCH_SIZE, NUM_EVALUATIONS = 50_000, 1000, 20
NUM_SMALL = 4
SIDE_PX = 32
NETWORK: dict[str, Any] = {
    "latent_channels": 3,
    "latent_size": SIDE_PX,
    "channels": [128, 192, 256, 256],
    "num_res_blocks": 2,
    "attention_levels": [False, True, False, False],
    "num_transformer_layers": 1,
    "head_width": 64,
    "linear_projection": True,
    "norm_groups": 32,
    "num_context_layers": 0,
    "position_embedding": False,
}
SMALL: dict[str, Any] = {"channels": [32, 32, 64, 64], "num_res_blocks": 1, "head_width": 32}


@torch.inference_mode()
def drawn(unet: nn.Module, num_images: int, num_evaluations: int, seed: int) -> UInt8[Tensor, "b 3 h w"]:
    """Images of a batch, on the device; each evaluation sees them all once."""
    schedule = Schedule("cosine")
    generator = torch.Generator(DEVICE).manual_seed(seed)
    noise = torch.randn(num_images, 3, SIDE_PX, SIDE_PX, generator=generator, device=DEVICE)
    condition = Condition(torch.zeros(num_images, 1, steps.default().params.context_width, device=DEVICE))
    times = grids.times("cosine", num_evaluations, "uniform", 1.0)
    with autocast(DEVICE, "bf16"):
        z = trajectory.start(schedule, noise, times[0])
        z = trajectory.follow(dpm_solver_pp_2m, denoiser(unet, schedule, "v", condition), schedule, z, times)
    return to_image(z)


def measure(options: argparse.Namespace) -> Found:
    """All images in one turn; the warm-up is a batch."""
    is_small = options.small or DEVICE.type == "cpu"
    total, batch_size, num_evaluations = (
        (2 * NUM_SMALL, NUM_SMALL, 2) if is_small else (NUM_IMAGES, BATCH_SIZE, NUM_EVALUATIONS)
    )
    backend = attention.select("auto", DEVICE)
    unet = steps.ours(steps.default(**NETWORK | (SMALL if is_small else {})).params).eval()
    compilation.prepare(steps.machine(), unet)
    num_weights = sum(weight.numel() for weight in unet.parameters())

    def all_images() -> None:
        batches = [drawn(unet, batch_size, num_evaluations, seed) for seed in range(total // batch_size)]
        assert sum(len(batch.cpu()) for batch in batches) == total

    drawn(unet, batch_size, num_evaluations, 0)
    taken = measuring.seconds(all_images)
    row = {
        "images": total,
        "evaluations": num_evaluations,
        "batch": batch_size,
        "million weights": num_weights / 1e6,
        "attention": backend,
        "seconds": taken,
        "images/s": total / taken,
    }
    return Found({"Images of 32 x 32 pixels, bf16": [row]}, {} if is_small else {"many_images_seconds": taken})


if __name__ == "__main__":
    measuring.main("many", __doc__, measure, rounds=(1, 1))
