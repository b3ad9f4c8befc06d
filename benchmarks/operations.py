"""Where the time of a training step goes: shares of kinds of operations, by torch's profiler.

Steps are those of the UNet and of the autoencoder of the default recipe in the loop of `benchmarks/steps.py`; on a GPU
also of Stable Diffusion 1. The ratio is the share of what is no convolution, matrix product or attention.
"""

import argparse
import re
from collections.abc import Callable
from functools import partial

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from benchmarks import measuring, steps
from benchmarks.measuring import DEVICE, Found, Row, Side, Spread
from ldm.core.params import Precision

KINDS = {
    "convolutions": "conv",
    "attention": "attention|softmax|bmm|flash|fmha",
    "matrix products": r"\bmm\b|addmm|linear|gemm|cutlass|nvjet",
    "norms": "group_norm|layer_norm",
    "optimizer, clipping, averages": "adamw|foreach|vector_norm|multi_tensor",
    "copies": r"copy|\bcat\b|clone|fill_|zero|elementwise_kernel_with_index",
    "other pointwise work and sums": (
        "add|mul|sub|div|silu|gelu|sum|mean|pow|exp|neg|upsample|scale|elementwise|reduce|sqrt|square"
    ),
}
"""Kind -> what the names of its operations or kernels have; the first that fits."""
REST = "all else: views, autograd, dispatch"
HEAVY = ("convolutions", "attention", "matrix products")


def kind_of(name: str) -> str:
    """Kind of an operation by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), REST)


def shares(step: Side, num_steps: int) -> tuple[dict[str, float], int]:
    """Seconds per step of every kind, on the device that computes, and calls of operations per step. Operations count
    without those that they call."""
    step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE.type == "cuda")
    with profile(activities=activities) as profiler:
        for _ in range(num_steps):
            step()
    found, count = dict.fromkeys([*KINDS, REST], 0.0), 0
    for event in profiler.key_averages():
        count += event.count if event.key.startswith("aten::") else 0
        found[kind_of(event.key)] += microseconds(event, DEVICE) / 1e6 / num_steps
    return found, count // num_steps


def microseconds(event: FunctionEventAvg, device: torch.device) -> float:
    """What an event itself takes of the time of `device`. On a GPU that is the time of kernels and copies alone: the
    operations that launched them, and annotations around them, tell of the same time again."""
    if device.type == "cpu":
        return event.self_cpu_time_total
    is_kernel = event.device_type == DeviceType.CUDA and not event.is_user_annotation
    return event.self_device_time_total if is_kernel else 0


def measure(options: argparse.Namespace) -> Found:
    """A table per step; the precisions are its columns."""
    steps.as_trainings_compute()
    tables: dict[str, list[Row]] = {}
    ratios: dict[str, Spread | float] = {}
    shapes = {"unet": steps.small() if options.small else steps.default()}
    if DEVICE.type == "cuda" and not options.small:
        shapes["sd1_32"] = steps.stable_diffusion(32, 32)
    networks: dict[str, Callable[[Precision], Side]] = {
        **{name: partial(steps.unet_step, shape) for name, shape in shapes.items()},
        "autoencoder": partial(steps.autoencoder_step, num_images=2 if options.small else None),
    }
    for name, step_in in networks.items():
        both = {precision: shares(step_in(precision), options.rounds) for precision in steps.precisions()}
        found = {precision: seconds for precision, (seconds, _) in both.items()}
        counts = ", ".join(f"{count:,} in {precision}" for precision, (_, count) in both.items())
        tables[f"Time of a step of the {name}, % ({counts} calls of operations)"] = [
            {"kind": kind, **{p: 100 * seconds[kind] / sum(seconds.values()) for p, seconds in found.items()}}
            for kind in [*KINDS, REST]
        ]
        for precision, seconds in found.items():
            heavy = sum(seconds[kind] for kind in HEAVY)
            ratios[f"small_operations_{name}_{precision}"] = 1 - heavy / sum(seconds.values())
    return Found(tables, ratios)


if __name__ == "__main__":
    measuring.main("operations", __doc__, measure, rounds=(3, 1))
