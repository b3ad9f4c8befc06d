"""A training step beside diffusers' UNet in the same loop, and its operations per second beside those of a matrix
product.

The loop is ours (`benchmarks/steps.py`) for both: clipping, fused AdamW, averaged weights. Networks have equal weights,
shapes and tokens; our context encoder and position embedding, which diffusers' network does not have, are left out of
that comparison and are in all others. At equal settings precision, attention and memory layout are the same. At its
best each side has the fastest of all that it offers: for theirs both attention processors, both layouts and both
precisions; for ours the two precisions, since the rest is chosen by `attention: auto`, on a GPU CUDA graphs, and, if
asked for, compiled blocks.

Shapes: `train_unet` and `train_autoencoder` of the default recipe on a CPU, Stable Diffusion 1 on a GPU.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measuring, steps
from benchmarks.measuring import DEVICE, Found, Row, Side, Spread
from benchmarks.steps import Shape
from ldm.compute import attention, compilation
from ldm.compute.precision import DTYPES
from ldm.core.params import Precision

OURS, THEIRS, PROBE = "ours", "diffusers", "product"
PLAIN: dict[str, Any] = {"compile": False}
GRAPHS: dict[str, dict[str, Any]] = {", graphs": {"compile": "graphs"}}
COMPILED: dict[str, dict[str, Any]] = {", compiled blocks, channels last": {"compile": "blocks", "channels_last": True}}
"""How our network may compute too: words -> what section machine says other than the default recipe."""


def shapes(small: bool) -> list[Shape]:
    """What is trained on this device."""
    if small:
        return [steps.small()]
    if DEVICE.type == "cpu":
        return [steps.default()]
    return [steps.stable_diffusion(32, 32), steps.stable_diffusion(64, 8)]


def sides_of(shape: Shape, ways: Mapping[str, dict[str, Any]]) -> dict[str, Side]:
    """Steps of both networks in all ways; `ways` are those of ours."""
    bare = shape.of_diffusers()
    data = bare.data()
    reference = steps.theirs(bare.params)
    ours = {way: steps.ours(bare.params) for way in ways}
    for way, unet in ours.items():
        unet.load_state_dict(reference.state_dict())
        compilation.prepare(steps.machine().model_copy(update=ways[way]), unet)
        for precision in precisions():
            size = bare.params.latent_size
            attention.prove(DEVICE, unet.attention_shapes(size, size), precision, trains=True)
    aligned = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for name, tensor in data.items()
    }
    other = steps.theirs(bare.params).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    found: dict[str, Side] = {}
    for precision in precisions():
        for way, unet in ours.items():
            found[f"{OURS}, {precision}{way}"] = steps.step(unet, steps.our_loss(unet, data), precision)
        for layout, (model, given) in {"": (reference, data), ", channels last": (other, aligned)}.items():
            for name, forward in processed(model, steps.their_loss(model, given)).items():
                found[f"{THEIRS}, {precision}, {name}{layout}"] = steps.step(model, forward, precision)
    return found


def ways(with_compiled: bool) -> dict[str, dict[str, Any]]:
    """How ours computes on this device."""
    return {"": PLAIN} | (GRAPHS if DEVICE.type == "cuda" else {}) | (COMPILED if with_compiled else {})


def precisions() -> list[Precision]:
    """Those that are compared: nobody trains in fp32 on a GPU."""
    return ["bf16"] if DEVICE.type == "cuda" else list(steps.precisions())


def processed(model: nn.Module, forward: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
    """A forward pass of diffusers' network with each of its attention processors."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    def by(processor: object) -> Callable[[], Tensor]:
        def run() -> Tensor:
            model.set_attn_processor(processor)  # pyright: ignore[reportCallIssue]
            return forward()

        return run

    fused = {"SDPA": by(AttnProcessor2_0())}
    return fused if DEVICE.type == "cuda" else fused | {"AttnProcessor": by(AttnProcessor())}


def measure(options: argparse.Namespace) -> Found:
    """Every shape beside diffusers, then our steps beside products."""
    steps.as_trainings_compute()
    backend = attention.selected()
    tables: dict[str, list[Row]] = {}
    ratios: dict[str, Spread | float] = {}
    for shape in shapes(options.small):
        suffix = "" if shape.name == "default" else f"_{shape.name}"
        sides = sides_of(shape, ways(options.compiled))
        found = measuring.turns(sides, options.rounds)
        title = f"A step of {shape.num_images} images, {shape.num_tokens} tokens ({shape.name}), attention {backend}"
        tables[title] = [
            {
                "network": name,
                **measuring.milliseconds(times),
                "images/s": shape.num_images / measuring.spread(times)[0],
            }
            for name, times in found.items()
        ]
        for precision in precisions():
            is_math = backend == "math+sdpa" and precision == "bf16"
            same = f"{THEIRS}, {precision}, {'AttnProcessor' if is_math else 'SDPA'}"
            ratios[f"train_step_equal_{precision}{suffix}"] = measuring.quotient(
                found[same], found[f"{OURS}, {precision}"]
            )
        best = (found[measuring.fastest(found, name)] for name in (THEIRS, OURS))
        ratios[f"train_step{suffix}"] = measuring.quotient(*best)
        del sides
        _add_share(shape, suffix, options, tables, ratios)
    return Found(tables, ratios)


def _add_share(
    shape: Shape,
    suffix: str,
    options: argparse.Namespace,
    tables: dict[str, list[Row]],
    ratios: dict[str, Spread | float],
) -> None:
    """Operations per second of our steps as shares of those of the faster product."""
    sides: dict[str, Side] = {}
    work: dict[str, int] = {}
    for precision in precisions():
        sides[f"{PROBE}, {precision}"], work[f"{PROBE}, {precision}"] = steps.probe(DTYPES[precision])
        sides[f"UNet, {precision}"] = steps.unet_step(shape, precision)
        if shape.name == "default":
            sides[f"autoencoder, {precision}"] = steps.autoencoder_step(precision, 2 if options.small else None)
    work |= {name: steps.flops(side) for name, side in sides.items() if name not in work}
    found = measuring.turns(sides, options.rounds)
    paces = {name: [work[name] / value for value in times] for name, times in found.items()}
    best = max((name for name in paces if name.startswith(PROBE)), key=lambda name: measuring.spread(paces[name])[0])
    tables[f"Operations per second of whole steps ({shape.name})"] = [
        {
            "what": name,
            "GF": work[name] / 1e9,
            **measuring.milliseconds(found[name]),
            "GF/s": measuring.spread(pace)[0] / 1e9,
            "of the faster product": measuring.quotient(pace, paces[best])[0],
        }
        for name, pace in paces.items()
    ]
    for network in ("UNet", "autoencoder"):
        if any(name.startswith(network) for name in found):
            own = paces[measuring.fastest(found, network)]
            ratios[f"{network.lower()}_of_product{suffix}"] = measuring.quotient(own, paces[best])


def add(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--compiled", action="store_true", help="also ours compiled, which takes minutes")


if __name__ == "__main__":
    measuring.main("train_step", __doc__, measure, rounds=(12, 2), add=add)
