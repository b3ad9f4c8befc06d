"""Two processes that train together, forked from this one: nothing is imported again, so that hundreds can be tried."""

import faulthandler
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState

from ldm.compute import ranks
from ldm.core import stage

PATIENCE_SECONDS = 60.0
_SECONDS_TO_PRINT = 2.0


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal; None if it had to be killed. And what it printed."""

    code: int | None
    said: str


def run_two(folder: Path, work: Callable[[int], None], patience_seconds: float = PATIENCE_SECONDS) -> list[Ended]:
    """`work(rank)` in two processes joined by gloo, each as a stage. What is left after so long prints where its
    threads are, and is killed; an exchange within a step fails after half of that."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def begin(rank: int) -> None:
        ranks.STEP_WAIT = timedelta(seconds=patience_seconds / 2)
        work(rank)

    children = [_fork(folder / f"said-{rank}.txt", rank, port, begin) for rank in range(2)]
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + patience_seconds
    while len(codes) < 2:
        for rank, child in enumerate(children):
            if rank not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(found[1])
        if time.monotonic() > deadline:
            left = {rank: child for rank, child in enumerate(children) if rank not in codes}
            for rank, threads in _kill(left).items():
                codes[rank] = None
                with (folder / f"said-{rank}.txt").open("a") as said:
                    said.write(threads)
        time.sleep(0.01)
    return [Ended(codes[rank], (folder / f"said-{rank}.txt").read_text()) for rank in range(2)]


def _kill(left: dict[int, int]) -> dict[int, str]:
    """What the threads of each wait for in the kernel; where they are in Python, it prints itself."""
    waits = {
        rank: [f"{file.parent.name} {file.read_text()}" for file in sorted(Path(f"/proc/{pid}/task").glob("*/wchan"))]
        for rank, pid in left.items()
    }
    for child in left.values():
        os.kill(child, signal.SIGUSR1)
    time.sleep(_SECONDS_TO_PRINT)
    for child in left.values():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {rank: "\n".join(["threads wait in", *lines, ""]) for rank, lines in waits.items()}


def _fork(said: Path, rank: int, port: int, work: Callable[[int], None]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    # What earlier tests left may wait, when it is collected, for threads that a fork has not.
    gc.freeze()
    try:
        with said.open("wb", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        faulthandler.register(signal.SIGUSR1, file=2)
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in here.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        code = exit_code(lambda: _done(rank, work))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(main: Callable[[], str]) -> int:
    """What a process ends with whose stage has this `main`; a bug shows its traceback."""
    try:
        stage.run(main)
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def _done(rank: int, work: Callable[[int], None]) -> str:
    work(rank)
    return "done"
