"""What every stage needs around its work: an honest exit, processes and threads, an output that appears as a whole."""

import errno
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ldm.errors import MachineError, UserError
from ldm.params.machine import MachineParams

if TYPE_CHECKING:
    from accelerate import Accelerator

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def run(main: Callable[[], str]) -> None:
    """Call `main` and print the summary line it returns, on the first process only.

    A `UserError` ends the process with its exit code and its lines on stderr; `LDM_DEBUG=1` keeps the traceback.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        summary = main()
    except UserError as error:
        if os.environ.get("LDM_DEBUG") == "1":
            raise
        print(f"[process {rank}] {error}" if rank else error, file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    if rank == 0:
        print(summary, flush=True)
        _note_time()
    _leave_process_group()


def start(precision: Literal["fp32", "bf16"], machine: MachineParams, num_accumulation_steps: int = 1) -> "Accelerator":
    """Join the other processes of this launch, set threads and the attention backend, and say so in one line.

    Raises:
        MachineError: the launcher's config asks for another precision or accumulation than the params or splits the
            model, or the attention backend cannot run here.
    """
    _refuse_launcher_config(precision, num_accumulation_steps)
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    from ldm import attention, ranks

    # A bare `accelerate launch` sets OMP_NUM_THREADS=1, so the environment says nothing about the machine.
    num_threads = machine.threads or default_threads()
    torch.set_num_threads(num_threads)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=num_accumulation_steps,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=ranks.STEP_WAIT)],
    )
    ranks.wait()  # the group that waits for hours is made while all processes are here
    torch.backends.cudnn.deterministic = True  # a GPU's fastest convolutions add in an order of the moment
    backend = attention.use(machine.attention, accelerator.device)
    processes = f"{accelerator.device.type} x {accelerator.num_processes}"
    accelerator.print(f"{processes}, {num_threads} threads each, {precision}, attention: {backend}", flush=True)
    return accelerator


@contextmanager
def output(path: Path, accelerator: "Accelerator | None" = None) -> Generator[Path]:
    """A new folder that every process may write into and that becomes `path` when the block ends without an error.

    The former content of `path` stays until then, and stays for good if the block fails. Nothing is written in place,
    since an output may be a link into DVC's cache. MachineError: the disk is full or broken.
    """
    is_main = accelerator is None or accelerator.is_main_process
    building, old = (path.with_name(f".{path.name}.{state}") for state in ("building", "old"))
    if is_main:
        _remove(building)
        building.mkdir(parents=True)
    _wait(accelerator)
    try:
        yield building
    except BaseException as error:
        if is_main:
            _remove(building)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            found = f"{error}; {shutil.disk_usage(path.parent).free} bytes are free"
            fix = "free space or mend the disk and run again; what was there before is unharmed"
            raise MachineError(str(path), found, "a disk that takes the output", fix) from error
        raise
    _wait(accelerator)
    if is_main:
        _remove(old)
        if path.exists() or path.is_symlink():
            path.rename(old)
        building.rename(path)
        _remove(old)
    _wait(accelerator)


def share_of(count: int, accelerator: "Accelerator") -> range:
    """The units of work, of `count`, that this process does: every `num_processes`-th one."""
    return range(accelerator.process_index, count, accelerator.num_processes)


def default_threads() -> int:
    """Physical cores that this process may use, shared between the processes that run on this machine; at least 1."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(physical, allowed, _cgroup_cores()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _cgroup_cores() -> int:
    """Cores that a container's CPU quota allows, rounded up; a container sees all cores of its host otherwise."""
    try:
        quota, period = _CGROUP_LIMIT.read_text(encoding="ascii").split()
    except OSError:
        return sys.maxsize
    return sys.maxsize if quota == "max" else math.ceil(int(quota) / int(period))


def _refuse_launcher_config(precision: str, num_accumulation_steps: int) -> None:
    """Precision and accumulation change results, so the params rule; the launcher's own default is "no" and 1."""
    if any(os.environ.get(name, "false").lower() in ("true", "1") for name in _SHARDED):
        expected = "whole models, data parallel: MULTI_GPU, or 'NO' for one process"
        fix = "use a config of configs/accelerate; gradient_checkpointing and num_accumulation_steps save memory"
        raise MachineError("accelerate config", "a model that is split over processes", expected, fix)
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        fix = "set mixed_precision: 'no' in the accelerate config; the params file decides"
        expected = f"{precision} as in the params file, or 'no'"
        raise MachineError("accelerate config", f"mixed_precision: {asked}", expected, fix)
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation not in ("1", str(num_accumulation_steps)):
        fix = "set gradient_accumulation_steps: 1 in the accelerate config; the params file decides"
        expected = f"{num_accumulation_steps} as in the params file, or 1"
        raise MachineError("accelerate config", f"gradient_accumulation_steps: {accumulation}", expected, fix)
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(num_accumulation_steps)


def _note_time() -> None:
    """Add this stage's wall time to the file that LDM_TIMES names, if any. No output holds a time: it would change."""
    if "LDM_TIMES" in os.environ:
        import psutil

        seconds = time.time() - psutil.Process().create_time()
        with Path(os.environ["LDM_TIMES"]).open("a", encoding="utf-8") as file:
            file.write(f"{Path(sys.argv[0]).stem:20} {seconds:8.1f}\n")


def _leave_process_group() -> None:
    """Spares the user torch's warning about a process group that was left open; stages without torch have none."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _wait(accelerator: "Accelerator | None") -> None:
    if accelerator is not None:
        from ldm import ranks

        ranks.wait()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
