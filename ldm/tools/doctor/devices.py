"""Probes of what torch computes with: devices, attention backends, and precision."""

import shutil
from collections.abc import Iterator
from typing import get_args

import torch
from torch import nn

from ldm.compute import attention, precision
from ldm.compute.attention import Shape
from ldm.compute.precision import DTYPES
from ldm.core.errors import MachineError
from ldm.core.params import MachineParams, Precision
from ldm.tools.doctor.finding import Finding

_SHAPE = Shape(num_queries=64, num_keys=64, head_width=64)
"""An attention as networks of small images have it."""
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
    for each in DTYPES:
        try:
            attention.select(backend, device)
            attention.prove(device, [_SHAPE], each, trains=True)
        except MachineError as error:
            reason = error.args[1].partition("(")[2].rstrip(")")
            found[each] = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
    return found


def speed() -> Iterator[Finding]:
    """What `precision: auto` comes to here, and how fast the products of networks are in either precision."""
    device = present()
    if not precision.is_measured(device):
        chosen, why = precision.choose(nn.Module(), device)
        yield Finding("precision", f"{chosen} ({why})")
        return
    found = precision.rates()
    for kind in precision.Rates._fields:
        chosen, why = precision.compare({each: getattr(rates, kind) for each, rates in found.items()})
        yield Finding("precision", f"{kind} layers: {chosen} ({why})")
