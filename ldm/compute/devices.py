"""What a process of a launch computes with: device, threads, the attention backend, and precision."""

import ctypes
import os
import sys
from typing import Any, Protocol

import torch
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from ldm.compute import attention, compilation, cores, launcher, precision, process, ranks
from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.core.errors import MachineError
from ldm.core.params import AskedPrecision, MachineParams, Precision

_OTHER_WAYS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
"""Variables by which accelerate asks for ways to split models that have no place here."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MEMORY = {_M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**30}
"""What glibc is told: to take blocks up to 32 MiB, the most it allows, from its heap, and keep 1 GiB of that. By itself
it gives the memory of large tensors back at once, and every step asks for thousands of pages again."""
_PRECISION = "precision"
_SET_BY_USERS = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}


class Training(Protocol):
    """What a training asks of the launch."""

    @property
    def num_accumulation_steps(self) -> int: ...
    @property
    def precision(self) -> AskedPrecision: ...


def start(machine: MachineParams, training: Training | None = None) -> Accelerator:
    """Join the other processes of this launch, set threads and the attention backend, and print them in one line.

    Precision (`settle`), accumulation and compilation come from the params, whatever the launcher's config says about
    them. training: what this process does, if it trains; nothing must have multiplied matrices before.

    Raises:
        MachineError: the launcher's config asks for what params files do not offer: fp16 or fp8, a model split in
            another way than by FSDP2, another accumulation; or the attention backend cannot run here.
    """
    num_accumulation_steps = training.num_accumulation_steps if training else 1
    _refuse_launcher_config(num_accumulation_steps)
    _refuse_other_splits(machine)
    keep_memory()
    if training is not None:
        precision.let_mkl_choose_its_code(training.precision)
    accelerator = process.join(
        mixed_precision="no",  # `precision.autocast` says what is computed in which type
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=num_accumulation_steps),
        dynamo_backend="no",  # `machine.compile` says what is compiled
        step_scheduler_with_optimizer=False,
    )
    num_threads = _set_threads(machine, accelerator)
    _set_kernels(machine)
    backend = attention.select(machine.attention, accelerator.device)
    processes = f"{accelerator.device.type} x {accelerator.num_processes}"
    settings = f"attention: {backend}{compilation.described(machine)}"
    accelerator.print(f"{processes}, {num_threads} threads each, {settings}", flush=True)
    return accelerator


def _set_kernels(machine: MachineParams) -> None:
    """Say which kernels a GPU may take. float32 is float32 in products and in convolutions: torch would round the
    factors of the latter to 10 bits (TF32)."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # The fastest convolutions of a GPU add in varying order.
    torch.backends.cudnn.deterministic = machine.deterministic
    torch.backends.cudnn.benchmark = not machine.deterministic


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for the next step: about 1.1 times as fast on CPUs, with equal
    bits. Without glibc, or where the user has set its thresholds, nothing happens."""
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt") and not _SET_BY_USERS & os.environ.keys():
        for name, size in _MEMORY.items():
            libc.mallopt(name, size)


def settle(
    asked: AskedPrecision, network: nn.Module, accelerator: Accelerator, before: Precision | None = None
) -> Precision:
    """The precision in which all processes compute, which is printed with its reason: the one that the params name; for
    `auto` the one in which the work began, `before`, or what the main process chooses now for this network."""
    chosen, why = asked, "as the params say"
    if chosen == "auto" and before is not None:
        chosen, why = before, "auto: as this work began"
    elif chosen == "auto" and accelerator.is_main_process:
        chosen, why = precision.choose(network, accelerator.device)
    # The others wait meanwhile, and leave their cores to the measurement.
    chosen, why = ranks.from_main([chosen, why])
    accelerator.print(f"precision {chosen} ({why})", flush=True)
    return chosen


def settle_in(run: Run, asked: AskedPrecision, network: nn.Module, accelerator: Accelerator) -> Precision:
    """`settle` for all units of work of an open run, which keeps what the first of them was computed in."""
    is_main = accelerator.is_main_process
    chosen = settle(asked, network, accelerator, run.noted(_PRECISION) if is_main else None)
    if is_main:
        run.note(_PRECISION, chosen)
    return chosen


def _set_threads(machine: MachineParams, accelerator: Accelerator) -> int:
    """Set CPU threads, equally many on every process, with a notice if other programs leave fewer cores than usual."""
    usual, num_threads = cores.threads(machine), cores.asked_threads(machine)
    if accelerator.device.type == "cpu":
        fix = "set machine.threads, or OMP_NUM_THREADS, to one value where each of them starts"
        ranks.agree({"machine.threads, or else OMP_NUM_THREADS,": num_threads}, fix)
    if num_threads is None and accelerator.device.type == "cpu":
        # The others wait meanwhile: one that still starts would look like other work.
        num_threads = ranks.from_main(cores.free_threads(usual) if accelerator.is_main_process else None)
    num_threads = num_threads or usual
    torch.set_num_threads(num_threads)
    if num_threads < usual and accelerator.is_main_process:
        why = f"other work keeps cores busy: {num_threads} of {usual} threads, which is faster beside it"
        print(f"{why}, with other last bits than {usual} (machine.threads: {usual} keeps them)", file=sys.stderr)
    return num_threads


def _refuse_launcher_config(num_accumulation_steps: int) -> None:
    """The params decide what is computed. A setting of the launcher that they override does no harm ("no" or bf16); one
    that params cannot express is refused, since it would have no effect."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "bf16"):
        fix = "set mixed_precision: 'no' in the accelerate config; the params file decides"
        expected = "'no' or bf16"
        raise MachineError("accelerate config", f"mixed_precision: {asked}", expected, fix)
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation not in ("1", str(num_accumulation_steps)):
        fix = "set gradient_accumulation_steps: 1 in the accelerate config; the params file decides"
        expected = f"{num_accumulation_steps} as in the params file, or 1"
        raise MachineError("accelerate config", f"gradient_accumulation_steps: {accumulation}", expected, fix)


def _refuse_other_splits(machine: MachineParams) -> None:
    """A model is whole, or split by FSDP2 as `ldm.training.sharding` does it."""
    fix = "use a config of configs/accelerate; gradient_checkpointing and num_accumulation_steps save memory"
    if any(os.environ.get(name, "false").lower() in ("true", "1") for name in _OTHER_WAYS):
        raise MachineError("accelerate config", "a model split over processes", launcher.EXPECTED, fix)
    if not launcher.splits():
        return
    for finding in launcher.wrong_environment():
        found, _, expected = finding.partition("; expected ")
        raise MachineError("accelerate config", found, expected, fix)
    if machine.compile:
        expected = "false where models are split over processes"
        found, fix = f"found {str(machine.compile).lower()}", "set it to false, or split no model"
        raise MachineError("params.yaml: machine.compile", found, expected, fix)
