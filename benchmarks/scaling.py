"""What more costs: images in a step, resolution, parameters, processes.

One side is the UNet of the default recipe in its precision, the others differ in one thing. The ratios compare
operations per second, counted by torch: below 1, more work is done less efficiently. Processes train with the stage's
own loop (`benchmarks/training.py`), in turns: two with one thread each, over one with two threads.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks import measuring, steps, training
from benchmarks.measuring import DEVICE, Found, Row, Spread
from ldm.compute import attention
from ldm.core.params import Precision
from ldm.denoiser.model.networks import build

IMAGES = (8, 16, 32, 64)
LATENT_SIZES = (8, 16, 32)
WIDTHS = ([32, 64], [64, 128], [96, 192], [128, 256])


def shapes(small: bool) -> dict[str, list[steps.Shape]]:
    """What is varied -> networks, from the smallest on."""
    if small:
        return dict.fromkeys(("images", "resolution", "parameters"), [steps.small()] * 2)
    first = steps.default()
    least = min(8, first.num_images)
    return {
        "images": [replace(first, name=f"{count} images", num_images=count) for count in IMAGES],
        "resolution": [_changed(f"{s} x {s} latents", least, latent_size=s) for s in LATENT_SIZES],
        "parameters": [_changed(f"{w[0]} and {w[1]} channels", first.num_images, channels=w) for w in WIDTHS],
    }


def _changed(name: str, num_images: int, **changes: object) -> steps.Shape:
    levels = len(steps.default().params.channels)
    assert levels == 2 or "channels" not in changes, "the widths are those of two levels"
    return replace(steps.default(num_images, **changes), name=name)


def measure(options: argparse.Namespace) -> Found:
    """A table of networks and one of processes."""
    attention.select("auto", DEVICE)
    precision = steps.precision()
    rows, ratios = list[Row](), dict[str, Spread | float]()
    for key, own in shapes(options.small).items():
        rows += _vary(key, own, precision, options.rounds, ratios)
    tables = {f"Training steps in {precision}": rows}
    if DEVICE.type == "cpu":
        tables["Training by the stage's loop, images/s"] = [_processes(options, ratios)]
    return Found(tables, ratios)


def _vary(
    key: str, own: list[steps.Shape], precision: Precision, num_rounds: int, ratios: dict[str, Spread | float]
) -> list[Row]:
    sides = {f"{number} {shape.name}": steps.unet_step(shape, precision) for number, shape in enumerate(own)}
    work = {name: steps.flops(side) for name, side in sides.items()}
    found = measuring.turns(sides, num_rounds)
    names = list(found)
    quotient = measuring.quotient(found[names[0]], found[names[-1]])
    more = work[names[-1]] / work[names[0]]
    ratios[f"scaling_{key}"] = quotient[0] * more, quotient[1] * more, quotient[2] * more
    rows: list[Row] = []
    for shape, (name, times) in zip(own, found.items(), strict=True):
        millions = sum(weight.numel() for weight in build(shape.params).parameters()) / 1e6
        middle = measuring.spread(times)[0]
        size = {
            "what": f"{key}: {shape.name}",
            "parameters, M": millions,
            "GF/image": work[name] / shape.num_images / 1e9,
        }
        rows.append({**size, "ms/image": 1000 * middle / shape.num_images, "GF/s": work[name] / middle / 1e9})
    return rows


def _processes(options: argparse.Namespace, ratios: dict[str, Spread | float]) -> Row:
    num_steps, num_rounds, most_threads, num_images = (4, 1, 1, 8) if options.small else (40, 3, 2, None)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        training.write_inputs(Path(folder), num_samples=1000)
        for number in range(num_rounds):
            both = ((1, most_threads), (2, 1))
            for count, threads in both[:: (-1) ** number]:  # in turn, so that neither is always the later one
                speeds = training.run(
                    Path(folder), num_steps, num_processes=count, num_threads=threads, num_images=num_images
                )
                rates[count].append(speeds.samples_per_second)
    ratios["two_processes_over_one"] = measuring.quotient(rates[2], rates[1])
    return {
        "one process, two threads": measuring.spread(rates[1])[0],
        "two processes, one thread each": measuring.spread(rates[2])[0],
    }


if __name__ == "__main__":
    measuring.main("scaling", __doc__, measure, rounds=(6, 1))
