"""What every stage needs around its work: an honest exit, processes and threads, an output that appears as a whole."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ldm import cores, locks, system
from ldm.errors import MachineError
from ldm.params.machine import MachineParams

if TYPE_CHECKING:
    from accelerate import Accelerator

_SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


def run(main: Callable[[], str]) -> None:
    """Call `main` and print the summary line it returns, on the first process only.

    What goes wrong outside our code ends the process with an exit code and a line on stderr, as `system.run` says.
    """
    rank = int(os.environ.get("RANK", "0"))

    def work() -> None:
        summary = main()
        if rank == 0:
            print(summary, flush=True)
            _note_time()
        _leave_process_group()

    code = system.run(work, prefix=f"[process {rank}] " if rank else "")
    if code:
        raise SystemExit(code)


def start(precision: Literal["fp32", "bf16"], machine: MachineParams, num_accumulation_steps: int = 1) -> "Accelerator":
    """Join the other processes of this launch, set threads and the attention backend, and say so in one line.

    Precision, accumulation and compilation come from the params, whatever the launcher's config says of them.

    Raises:
        MachineError: the launcher's config asks for what no params file offers: fp16 or fp8, a model that is split over
            processes, another accumulation; or the attention backend cannot run here.
    """
    _refuse_launcher_config(num_accumulation_steps)
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import GradientAccumulationPlugin

    from ldm import attention, ranks

    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=num_accumulation_steps),
        dynamo_backend="no",  # `machine.compile` says what is compiled
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=ranks.STEP_WAIT)],
    )
    ranks.wait()  # the group that waits for hours is made while all processes are here
    num_threads = _set_threads(machine, accelerator)
    torch.backends.cudnn.deterministic = True  # a GPU's fastest convolutions add in an order of the moment
    backend = attention.use(machine.attention, accelerator.device)
    processes = f"{accelerator.device.type} x {accelerator.num_processes}"
    accelerator.print(f"{processes}, {num_threads} threads each, {precision}, attention: {backend}", flush=True)
    return accelerator


@contextmanager
def output(path: Path, accelerator: "Accelerator | None" = None) -> Generator[Path]:
    """`outputs` with one folder."""
    with outputs(accelerator, path) as (folder,):
        yield folder


@contextmanager
def outputs(accelerator: "Accelerator | None", *paths: Path) -> Generator[tuple[Path, ...]]:
    """New folders that every process may write into and that become `paths`, all together, when the block ends without
    an error.

    The former content of `paths` stays until then, and stays for good if the block fails. Nothing is written in place,
    since an output may be a link into DVC's cache. After a kill at any point all new folders are there, or all that
    were there before come back when the next block of the same `paths` begins.

    Raises:
        MachineError: another process writes the same folder, or the disk is full or broken.
    """
    is_main = accelerator is None or accelerator.is_main_process
    places = [_Place(path) for path in paths] if is_main else []
    with ExitStack() as locked:
        for place in places:
            locked.enter_context(place.held())
        try:
            _put_back(places)
            for place in places:
                _remove(place.building)
                place.building.mkdir(parents=True)
            _wait(accelerator)
            yield tuple(_Place(path).building for path in paths)
            _wait(accelerator)
            _swap(places)
        except BaseException as error:
            for place in places:
                _remove(place.building)
            if isinstance(error, OSError) and error.errno in system.DISK_ERRORS:
                raise system.explain(error, str(paths[0])) from error
            raise
        _wait(accelerator)


class _Place:
    """Where an output is, and beside it what is built, what it replaces meanwhile, and who is at work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.building, self.old, self._lock = (path.with_name(f".{path.name}.{s}") for s in ("building", "old", "lock"))

    @property
    def is_there(self) -> bool:
        """Also as a link that leads nowhere."""
        return os.path.lexists(self.path)

    @property
    def is_aside(self) -> bool:
        """Its former content waits for the new one."""
        return os.path.lexists(self.old)

    @contextmanager
    def held(self) -> Generator[None]:
        """MachineError: another process holds it."""
        lock = locks.take(self._lock)
        try:
            yield
        finally:
            with suppress(OSError):  # left over, it does no harm
                self._lock.unlink()
            locks.release(lock)


def _swap(places: Sequence[_Place]) -> None:
    """What was built takes the place of what was there."""
    try:
        for place in places:
            if place.is_there:
                place.path.rename(place.old)
        # Those that replace nothing last: until then a folder is missing, and what lies aside would come back.
        for place in sorted(places, key=lambda place: not place.is_aside):
            place.building.rename(place.path)
    finally:
        _put_back(places)


def _put_back(places: Sequence[_Place]) -> None:
    """End a swap that was cut: if a folder is missing, what lies aside comes back, else it is not needed any more."""
    aside = [place for place in places if place.is_aside]
    if not all(place.is_there for place in places):
        # The missing ones last: until then a cut of this leads here once more.
        for place in sorted(aside, key=lambda place: not place.is_there):
            if place.is_there:
                _remove(place.building)
                place.path.rename(place.building)
            place.old.rename(place.path)
        return
    for place in aside:
        # Under another name first: what lies aside is whole, whatever cuts its removal.
        _remove(place.building)
        place.old.rename(place.building)
        _remove(place.building)


def share_of(count: int, accelerator: "Accelerator") -> range:
    """The units of work, of `count`, that this process does: every `num_processes`-th one."""
    return range(accelerator.process_index, count, accelerator.num_processes)


def _set_threads(machine: MachineParams, accelerator: "Accelerator") -> int:
    """Set CPU threads, the same number on every process, and say so if other programs leave fewer cores than usual."""
    import torch

    from ldm import ranks

    usual, num_threads = cores.threads(machine), cores.asked_threads(machine)
    if num_threads is None and accelerator.device.type == "cpu":
        # All wait meanwhile, or the start of one would look like other work.
        num_threads = ranks.from_main(cores.free_threads(usual) if accelerator.is_main_process else None)
    num_threads = num_threads or usual
    torch.set_num_threads(num_threads)
    if num_threads < usual and accelerator.is_main_process:
        why = f"other work keeps cores busy: {num_threads} of {usual} threads, which is faster beside it"
        print(f"{why}, with other last bits than {usual} (machine.threads: {usual} keeps them)", file=sys.stderr)
    return num_threads


def _refuse_launcher_config(num_accumulation_steps: int) -> None:
    """The params decide what is computed. A launcher's answer that they overrule does no harm ("no" or bf16); one that
    they cannot give would be a promise that is not kept."""
    if any(os.environ.get(name, "false").lower() in ("true", "1") for name in _SHARDED):
        expected = "whole models, data parallel: MULTI_GPU, or 'NO' for one process"
        fix = "use a config of configs/accelerate; gradient_checkpointing and num_accumulation_steps save memory"
        raise MachineError("accelerate config", "a model that is split over processes", expected, fix)
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
