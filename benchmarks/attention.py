"""Backends of attention at the shapes of the run, forwards and backwards: does `auto` choose the fastest?

Shapes are all that `train_unet` of the default recipe has, in its batches; on a GPU those of Stable Diffusion 1 too.
The ratio is the time of the fastest backend of each shape, summed, over that of `auto`: 1 = nothing is faster.
"""

import argparse
from collections.abc import Mapping
from contextlib import suppress

import torch

from benchmarks import measuring, steps
from benchmarks.measuring import DEVICE, Found, Row, Side, Spread
from ldm.compute import attention
from ldm.compute.attention import Attend, Backend, Shape
from ldm.compute.precision import DTYPES
from ldm.core.errors import MachineError
from ldm.denoiser.model.networks import build
from ldm.denoiser.model.params import UNetParams

BACKENDS: dict[Backend, Attend] = {
    "math": attention.math,
    "sdpa": attention.sdpa,
    "cudnn": attention.cudnn,
    "xformers": attention.xformers,
}


def run_here() -> dict[str, Attend]:
    """Backends that run on this device at all."""
    found: dict[str, Attend] = {}
    for name, backend in BACKENDS.items():
        with suppress(MachineError):
            attention.select(name, DEVICE)
            found[name] = backend
    return found


def side(backend: Attend, shape: Shape, num_images: int, num_heads: int, dtype: torch.dtype) -> Side:
    """Attention of a batch forwards and backwards, with the memory layout of heads in a network."""
    n, m, head = shape
    tokens = (torch.randn(num_images, t, num_heads, head, device=DEVICE, dtype=dtype) for t in (n, m, m))
    q, k, v = (part.transpose(1, 2).requires_grad_() for part in tokens)
    upwards = torch.randn_like(q)
    return lambda: torch.autograd.grad(backend(q, k, v, None), (q, k, v), upwards)


def able(sides: Mapping[str, Side]) -> dict[str, Side]:
    """Sides for which the memory of this device is enough."""
    found: dict[str, Side] = {}
    for name, each in sides.items():
        with suppress(torch.OutOfMemoryError):
            each()
            found[name] = each
    return found


def widths(params: UNetParams) -> list[int]:
    """Channels of all heads together, for every one of a network's `attention_shapes`."""
    levels = zip(params.channels, [*params.attention_levels[:-1], True], strict=True)
    of_levels = [width for width, attends in levels if attends for _ in ("self", "cross")]
    return of_levels + [params.context_width] * (params.num_context_layers > 0)


def shapes(small: bool) -> list[tuple[steps.Shape, list[tuple[Shape, int]]]]:
    """Every network with the different shapes of its attention, each with its number of heads."""
    networks = [steps.small() if small else steps.default()]
    networks += [steps.stable_diffusion(64, 8)] if DEVICE.type == "cuda" and not small else []
    found: list[tuple[steps.Shape, list[tuple[Shape, int]]]] = []
    for network in networks:
        size, tokens = network.params.latent_size, network.num_tokens
        with torch.device("meta"):
            of_unet = build(network.params).attention_shapes(size, size)
        # The network knows the most tokens that it may be given; captions have fewer.
        lengths = {network.params.max_context_tokens: tokens}
        cut = [
            (Shape(lengths.get(n, n), lengths.get(m, m), head), width // head)
            for (n, m, head), width in zip(of_unet, widths(network.params), strict=True)
        ]
        found.append((network, list(dict.fromkeys(cut))))
    return found


def measure(options: argparse.Namespace) -> Found:
    """All backends at all shapes, by precision."""
    steps.as_trainings_compute()
    backends, tables, ratios = run_here(), dict[str, list[Row]](), dict[str, Spread | float]()
    for network, own in shapes(options.small):
        suffix = "" if network.name == "default" else f"_{network.name}"
        for precision in steps.precisions():
            attention.select("auto", DEVICE)
            attention.prove(DEVICE, [shape for shape, _ in own], precision, trains=True)
            fastest, auto, rows = list[list[float]](), list[list[float]](), list[Row]()
            for shape, num_heads in own:
                sides = {
                    name: side(backend, shape, network.num_images, num_heads, DTYPES[precision])
                    for name, backend in {**backends, "auto": attention.attend}.items()
                }
                others = able({name: sides[name] for name in backends})
                found = measuring.turns({**others, "auto": sides["auto"]}, options.rounds)
                best = min(others, key=lambda name: measuring.spread(found[name])[0])
                fastest.append(found[best])
                auto.append(found["auto"])
                ms = {f"{n}, ms": 1000 * measuring.spread(found[n])[0] if n in found else "not able" for n in sides}
                queries, keys, head = shape
                size: Row = {"queries x keys": f"{queries} x {keys}", "heads": num_heads, "head width": head}
                rows.append({**size, **ms, "fastest": best})
            title = f"Attention in {precision}, {network.num_images} images ({network.name})"
            tables[f"{title}; auto is {attention.selected()}"] = rows
            sums = [[sum(times) for times in zip(*each, strict=True)] for each in (fastest, auto)]
            ratios[f"attention_{precision}{suffix}"] = measuring.quotient(*sums)
    return Found(tables, ratios)


if __name__ == "__main__":
    measuring.main("attention", __doc__, measure, rounds=(30, 2))
