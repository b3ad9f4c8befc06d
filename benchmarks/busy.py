"""How threads should wait, and what a busy core beside a training costs: training steps by OpenMP's settings and number
of threads, alone and beside one busy process.

Steps are those of the default's UNet on random data. Every side is a process of its own, since OpenMP reads its
settings once. The sides take turns within one run, the others are stopped meanwhile (a thread that spins would disturb
them); medians over the rounds. A busy process is a Python loop.

`busy_step` is a step beside a busy process over one alone, each with as many threads as a stage takes that starts then;
`busy_later` the same for a stage that started alone, with the threads that it had.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO

import torch

from benchmarks import measuring, steps
from benchmarks.measuring import DEVICE, ROOT, Found, Row, Spread
from ldm.compute import attention, cores

SETTINGS: dict[str, dict[str, str]] = {
    "unset": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "active": {"OMP_WAIT_POLICY": "active"},
    "spin_1000": {"GOMP_SPINCOUNT": "1000"},
    "spin_10000": {"GOMP_SPINCOUNT": "10000"},
}
READ_BY_OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "KMP_BLOCKTIME")
Cell = tuple[str, int, str]
"""Setting, threads, load."""


def work(is_small: bool) -> None:
    """A side: for each line `THREADS SECONDS` on stdin, train for about so long; answer with seconds per step."""
    attention.select("auto", DEVICE)
    torch.manual_seed(0)
    step = steps.unet_step(steps.small() if is_small else steps.default(), steps.precision())
    for line in sys.stdin:
        num_threads, seconds = line.split()
        torch.set_num_threads(int(num_threads))
        step()  # the first one with this number starts the threads
        measuring.synchronise()
        count, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) - begin < float(seconds) or not count:
            step()
            measuring.synchronise()
            count += 1
        print((now - begin) / count, flush=True)


class Side:
    """A process with settings of its own, stopped but for its turns."""

    def __init__(self, setting: dict[str, str], is_small: bool) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in READ_BY_OPENMP} | setting
        command = [sys.executable, "-m", "benchmarks.busy", "--work", *["--small"] * is_small]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)

    def turn(self, num_threads: int, seconds: float) -> float:
        """Seconds per step."""
        self.process.send_signal(signal.SIGCONT)
        _write(self.process.stdin, f"{num_threads} {seconds}\n")
        answer = self.process.stdout.readline() if self.process.stdout else ""
        assert answer, "a side has ended"
        self.process.send_signal(signal.SIGSTOP)
        return float(answer)


def _write(pipe: IO[str] | None, text: str) -> None:
    assert pipe is not None
    pipe.write(text)
    pipe.flush()


@contextmanager
def busy(count: int) -> Generator[None]:
    """So many other processes at work."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def turns(
    settings: dict[str, dict[str, str]], threads: list[int], num_rounds: int, length: float, is_small: bool
) -> tuple[dict[Cell, list[float]], dict[str, int]]:
    """Seconds per step of every cell, one value per round; and by load the threads that a stage takes which starts
    then. Each round takes all in the other order than the one before, as in `measuring.turns`."""
    sides = {name: Side(setting, is_small) for name, setting in settings.items()}
    found: dict[Cell, list[float]] = {}
    taken: dict[str, int] = {}
    try:
        for side in sides.values():
            side.turn(1, 0.0)  # all start at once, and wait to be stopped
        for number in range(num_rounds):
            order = -1 if number % 2 else 1
            for load, num_others in (("alone", 0), ("busy", 1))[::order]:
                with busy(num_others):
                    taken[load] = min(taken.get(load, max(threads)), cores.free_threads(max(threads)))
                    for name, side in list(sides.items())[::order]:
                        for count in threads[::order]:
                            found.setdefault((name, count, load), []).append(side.turn(count, length))
    finally:
        for side in sides.values():
            side.process.kill()
            side.process.wait()
    return found, taken


def measure(options: argparse.Namespace) -> Found:
    """Steps of every setting, and how many times as fast as with nothing set they are."""
    settings = {"unset": SETTINGS["unset"]} if options.small else SETTINGS
    length, numbers = (0.0, [1]) if options.small else (options.seconds, options.numbers)
    found, taken = turns(settings, numbers, options.rounds, length, options.small)
    rows: list[Row] = []
    ratios: dict[str, Spread | float] = {}
    for name in settings:
        for count in numbers:
            alone, loaded = (1000 * measuring.spread(found[name, count, load])[0] for load in ("alone", "busy"))
            rows.append({"setting": name, "threads": count, "alone, ms": alone, "beside a busy process, ms": loaded})
    for name, count, load in found:
        if name != "unset":
            ratio = measuring.quotient(found["unset", count, load], found[name, count, load])
            ratios[f"{load}_{name}_{count}_threads"] = ratio
    alone = found["unset", taken["alone"], "alone"]
    ratios["busy_later"] = measuring.quotient(found["unset", taken["alone"], "busy"], alone)
    ratios["busy_step"] = measuring.quotient(found["unset", taken["busy"], "busy"], alone)
    return Found({"Training steps": rows}, ratios)


def add(parser: argparse.ArgumentParser) -> None:
    """Options beside those of all benchmarks."""
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, at least one step")
    parser.add_argument("--numbers", type=int, nargs="+", default=[1, 2], help="numbers of threads")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work("--small" in sys.argv)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or stopped sides would stay
        measuring.main("busy", __doc__, measure, rounds=(3, 1), add=add)
