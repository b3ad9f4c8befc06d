"""Probes of what torch computes with: devices, attention backends, and the speed of bf16."""

import shutil
import time
from collections.abc import Callable, Iterator
from typing import get_args

import torch
from torch import nn

from ldm.compute import attention
from ldm.compute.attention import Shape
from ldm.compute.precision import DTYPES, autocast
from ldm.core.errors import MachineError
from ldm.core.params import MachineParams, Precision
from ldm.tools.doctor.finding import Finding

_SHAPE = Shape(num_queries=64, num_keys=64, head_width=64)
"""An attention as networks of small images have it."""
_SECONDS = 0.02
"""How long each precision is measured."""
_CLEARLY = 1.1
_LONGEST_REASON = 80


def present() -> torch.device:
    """The device that a training would take."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def devices() -> Iterator[Finding]:
    """GPUs that torch can use, or the vector instructions of the CPU."""
    if not torch.cuda.is_available():
        advice = ""
        if shutil.which("nvidia-smi"):
            driver = f"this torch needs a driver for CUDA {torch.version.cuda}; a container needs `--gpus all`"
            of_cpu = "this torch is one for CPUs alone: `make setup` installs that of requirements.lock"
            advice = driver if torch.version.cuda else of_cpu
        yield Finding(
            "device", f"CPU with {torch.backends.cpu.get_cpu_capability()}; no GPU that torch can use", advice
        )
        return
    count = torch.cuda.device_count()
    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        found = f"GPU {number}: {torch.cuda.get_device_name(number)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        is_busy = free < total / 2
        yield Finding("device", found, "end the programs that hold most of its memory" if is_busy else "")
    if count > 1:
        how = "accelerate launch --config_file configs/accelerate/ddp.yaml stages/train_unet.py"
        yield Finding("launch", f"{count} GPUs, which `dvc repro` uses as accelerate's config says", f"for all: {how}")


def backends(machine: MachineParams | None) -> Iterator[Finding]:
    """Which attention backends train here, by trying each of them."""
    device, now = present(), "auto" if machine is None else machine.attention
    refusals = {name: _refusals(name, device) for name in get_args(attention.Backend) if name != "auto"}
    runs = {name: [p for p in DTYPES if p not in refusals[name]] for name in refusals}
    shown = [f"{name} ({', '.join(runs[name])})" for name in runs if runs[name]]
    shown += [f"not {name}: {next(iter(refusals[name].values()))}" for name in runs if not runs[name]]
    is_fine = now == "auto" or bool(runs[now])
    advice = "" if is_fine else "`machine.attention: auto` takes one that runs"
    found = f"auto takes {attention.select('auto', device)}; trains on {device.type}: {', '.join(shown)}"
    yield Finding("attention", found, advice, {"attention": now if is_fine else "auto"})


def _refusals(backend: attention.Backend, device: torch.device) -> dict[Precision, str]:
    """Why a backend cannot train here, for the precisions in which it cannot."""
    found: dict[Precision, str] = {}
    for precision in DTYPES:
        try:
            attention.select(backend, device)
            attention.prove(device, [_SHAPE], precision, trains=True)
        except MachineError as error:
            reason = error.args[1].partition("(")[2].rstrip(")")
            found[precision] = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
    return found


def speed(num_threads: int) -> Iterator[Finding]:
    """How fast bf16 is beside fp32, on a step of a small network."""
    device = present()
    torch.set_num_threads(num_threads)
    step = _step(device)
    seconds = {precision: _seconds(lambda each=precision: step(each)) for precision in DTYPES}
    ratio = seconds["fp32"] / seconds["bf16"]
    found = f"a step in bf16 takes {1 / ratio:.2f} times that in fp32, on {device.type}"
    keys = "train_unet.training.precision and its like in the other sections"
    if ratio >= _CLEARLY:
        yield Finding("bf16", f"{found}: keep `precision: bf16`")
    else:
        yield Finding("bf16", found, f"`precision: fp32` is as fast here ({keys}; stages run again)")


def _step(device: torch.device) -> Callable[[Precision], None]:
    """Forward and backward pass of a convolution and a linear layer."""
    network = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Flatten(2), nn.Linear(256, 256)).to(device)
    x = torch.ones(16, 64, 16, 16, device=device)

    def step(precision: Precision) -> None:
        with autocast(device, precision):
            loss = network(x).square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _seconds(step: Callable[[], None]) -> float:
    """Of the fastest of the steps that fit into the time of a measurement."""
    step()  # the first one prepares kernels
    found, end = [], time.perf_counter() + _SECONDS
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return min(found)
