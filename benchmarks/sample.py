"""Sampling with classifier-free guidance beside diffusers' UNet in the loop of diffusers' pipelines.

Weights, latents, tokens, guidance and sampler (Euler's method) are equal, and so are the results, up to rounding. Our
context encoder and position embedding, which diffusers' network does not have, are left out. Each side is at its best:
theirs of both attention processors, both layouts and both precisions, ours of both precisions, and as section machine
says (CUDA graphs on a GPU). Ours includes all that is done once per batch. Nothing is decoded, which would be the same
for both.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks import measuring, steps
from benchmarks.measuring import DEVICE, Found, Row, Side, Spread
from benchmarks.steps import Shape
from ldm.autoencoder.encoding.latents import LatentScale
from ldm.autoencoder.model import networks as autoencoders
from ldm.autoencoder.model.params import IdentityParams
from ldm.compute import attention
from ldm.compute.precision import DTYPES
from ldm.core import config
from ldm.core.artifact import Passport
from ldm.denoiser.model import networks
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import Schedule
from ldm.sampling import trajectory
from ldm.sampling.generator import Generator
from ldm.sampling.guidance.models import Guides
from ldm.sampling.params import DrawingParams, SampleParams

OURS, THEIRS = "ours", "diffusers"
BATCHES = (1, 16, 64)
NUM_QUALIFYING_ROUNDS = 2
MAX_DIFFERENCE = 1e-3


def generator(unet: networks.Network, null: Tensor) -> Generator:
    """Ours, of a UNet alone. No file is read, so hashes are empty."""
    inputs: dict[str, str] = {name: "" for name in ("autoencoder", "embeddings", "latents_train")}
    facts = {"caption_dropout": 0.1}
    passport = Passport(
        kind="unet", format_version=1, config={}, inputs=inputs, content_sha256="", facts=facts, packages={},
        passport_sha256="",
    )  # fmt: skip
    channels = unet.latent_shape[0]
    return Generator(
        unet=unet.eval().requires_grad_(False),
        autoencoder=autoencoders.build(IdentityParams(kind="identity", latent_channels=3)),  # decodes nothing
        schedule=Schedule("flow"),
        prediction="flow",
        scale=LatentScale(torch.zeros(channels), torch.ones(channels)),
        text=cast(Any, None),
        stored=None,
        null_condition=Condition(null),
        passport=passport,
        directory=Path(),
        device=DEVICE,
        text_encoder=None,
        guides=Guides(Path(), {}, Path(), DEVICE),
    )


def drawing() -> DrawingParams:
    """The settings of the default recipe with Euler's method, which both sides have."""
    settings = config.read(SampleParams, "sample", measuring.PARAMS).drawing
    euler = {"sampler": {"kind": "ddim", "eta": 0.0}, "guidance": "classifier_free"}
    return settings.changed({**euler, "guidance_interval": (0, 1), "spacing": "uniform", "time_shift": 1.0})


def our_side(made: Generator, tokens: Tensor, settings: DrawingParams) -> Side:
    """Latents of a batch by ours."""

    @torch.no_grad()
    def run() -> Tensor:
        denoise = made.guided(Condition(tokens), settings)
        return made.latents(denoise, range(len(tokens)), settings)

    return run


def their_side(unet: nn.Module, processor: object, tokens: Tensor, null: Tensor, settings: DrawingParams) -> Side:
    """The same by the loop of `StableDiffusionPipeline`, in the type of the weights of `unet`."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    network, num_steps, scale = cast(Any, unet), settings.num_steps, settings.guidance_scale
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    embeds = torch.cat([null.expand_as(tokens), tokens]).to(network.dtype)
    size = network.config.sample_size
    noise = trajectory.prompt_noise(settings.seed, range(len(tokens)), (network.config.in_channels, size, size))

    @torch.no_grad()
    def run() -> Tensor:
        network.set_attn_processor(processor)
        scheduler.set_timesteps(sigmas=[1 - i / num_steps for i in range(num_steps)], device=DEVICE)
        z = noise.to(DEVICE, network.dtype)
        for t in scheduler.timesteps:
            both = network(torch.cat([z, z]), t, encoder_hidden_states=embeds, return_dict=False)[0]
            without, told = both.chunk(2)
            z = scheduler.step(without + scale * (told - without), t, z, return_dict=False)[0]
        return z

    return run


def sides_of(shape: Shape, settings: DrawingParams) -> dict[str, Side]:
    """Both in all ways, for a batch of this many images."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    tokens = shape.data()["context"]
    null = torch.randn_like(tokens[:1])
    reference = steps.theirs(shape.params).eval().requires_grad_(False)
    cast(Any, reference).register_to_config(sample_size=shape.params.latent_size)
    ours = steps.ours(shape.params)
    ours.load_state_dict(reference.state_dict())
    made, found = generator(ours, null), dict[str, Side]()
    for precision in steps.precisions():
        changed = settings.changed({"precision": precision})
        made.speed_up(changed, steps.machine())
        found[f"{OURS}, {precision}"] = our_side(made, tokens, changed)
        for layout in (torch.contiguous_format, torch.channels_last):
            copied = steps.theirs(shape.params).eval().requires_grad_(False)
            cast(Any, copied).register_to_config(sample_size=shape.params.latent_size)
            copied.load_state_dict(reference.state_dict())
            copied.to(DEVICE, DTYPES[precision]).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
            for processor in (AttnProcessor2_0(), AttnProcessor()):
                name = f"{THEIRS}, {precision}, {type(processor).__name__}"
                name += ", channels last" * (layout == torch.channels_last)
                found[name] = their_side(copied, processor, tokens, null, changed)
    return found


def check_equal(sides: dict[str, Side]) -> None:
    """AssertionError unless both sides draw the same in fp32."""
    ours, theirs = (cast(Tensor, sides[name]()) for name in (f"{OURS}, fp32", f"{THEIRS}, fp32, AttnProcessor"))
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    assert worst < MAX_DIFFERENCE, f"ours and theirs differ by {worst:.1e} of the largest value"


def measure(options: argparse.Namespace) -> Found:
    """Each number of images; all ways qualify in a few rounds, and the fastest of both sides run against each other."""
    attention.select("auto", DEVICE)
    settings, base = drawing(), steps.default()
    if options.small:
        settings, base = settings.changed({"num_steps": 2}), steps.small()
    tables: dict[str, list[Row]] = {}
    ratios: dict[str, Spread | float] = {}
    for num_images in (1, 2) if options.small else BATCHES:
        shape = Shape(base.name, base.of_diffusers().params, num_images, base.num_tokens)
        sides = sides_of(shape, settings)
        check_equal(sides)
        tried = measuring.turns(sides, min(NUM_QUALIFYING_ROUNDS, options.rounds))
        best = [measuring.fastest(tried, name) for name in (OURS, THEIRS)]
        found = tried | measuring.turns({name: sides[name] for name in best}, options.rounds)
        title = (
            f"{num_images} images of {settings.num_steps} steps, guidance {settings.guidance_scale:g} ({shape.name})"
        )
        tables[title] = [
            {"sampling": name, **measuring.milliseconds(times), "images/s": num_images / measuring.spread(times)[0]}
            for name, times in found.items()
        ]
        ratios[f"sample_{num_images}"] = measuring.quotient(found[best[1]], found[best[0]])
    ratios["sample"] = min(cast(Spread, ratio)[0] for ratio in ratios.values())
    return Found(tables, ratios)


if __name__ == "__main__":
    measuring.main("sample", __doc__, measure, rounds=(10, 2))
