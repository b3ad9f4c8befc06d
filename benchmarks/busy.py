"""How threads should wait: training steps per second by OpenMP's settings and number of threads, alone and beside one
busy process.

Steps are those of the UNet in params.yaml on random data. Every side is a process of its own, since OpenMP reads its
settings once. The sides take turns within one run, the others are stopped meanwhile (a thread that spins would disturb
them); medians over the rounds. A busy process is a Python loop.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from statistics import median
from typing import IO

import torch  # before ldm, which would set how threads wait: here the parent process says it
from torch import nn

from ldm.compute import attention
from ldm.compute.precision import autocast
from ldm.core import config
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.networks import build
from ldm.denoiser.training.params import TrainUNetParams

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


def work() -> None:
    """A side: for each line `THREADS SECONDS` on stdin, train for about so long; answer with seconds per step."""
    section = config.read(TrainUNetParams, "train_unet")
    params, training = section.network, section.training
    rows = training.batch_size // training.num_accumulation_steps
    attention.select("auto", torch.device("cpu"))
    torch.manual_seed(0)
    unet = build(params)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    z, target = torch.randn(2, rows, params.latent_channels, params.latent_size, params.latent_size)
    condition = Condition(torch.randn(rows, params.max_context_tokens, params.context_width))

    def step() -> None:
        with autocast(z.device, training.precision):
            prediction = unet(z, 1000 * torch.rand(rows), condition)
        (prediction.float() - target).square().mean().backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for line in sys.stdin:
        num_threads, seconds = line.split()
        torch.set_num_threads(int(num_threads))
        step()  # the first one with this number starts the threads
        count, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) - begin < float(seconds) or not count:
            step()
            count += 1
        print((now - begin) / count, flush=True)


class Side:
    """A process with settings of its own, stopped but for its turns."""

    def __init__(self, setting: dict[str, str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in READ_BY_OPENMP} | setting
        command = [sys.executable, __file__, "--work"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

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


def measure(threads: list[int], num_rounds: int, seconds: float) -> dict[Cell, list[float]]:
    """Seconds per step of every cell, one value per round."""
    sides = {name: Side(setting) for name, setting in SETTINGS.items()}
    found: dict[Cell, list[float]] = {}
    try:
        for side in sides.values():
            side.turn(1, 0.0)  # all start at once, and wait to be stopped
        for _ in range(num_rounds):
            for load, num_others in (("alone", 0), ("busy", 1)):
                with busy(num_others):
                    for name, side in sides.items():
                        for count in threads:
                            found.setdefault((name, count, load), []).append(side.turn(count, seconds))
    finally:
        for side in sides.values():
            side.process.kill()
            side.process.wait()
    return found


def main() -> None:
    """Print a table, then how many times as fast as with nothing set every cell is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, at least one step")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or stopped sides would stay
    found = {cell: median(values) for cell, values in measure(options.threads, options.rounds, options.seconds).items()}
    print(f"{'setting':12} {'threads':>7} {'alone':>12} {'busy':>12}   ms per step")
    for name in SETTINGS:
        for count in options.threads:
            alone, loaded = (1000 * found[name, count, load] for load in ("alone", "busy"))
            print(f"{name:12} {count:7} {alone:12.1f} {loaded:12.1f}")
    for (name, count, load), seconds in found.items():
        if name != "unset":
            print(f"ratio {load}_{name}_{count}_threads {found['unset', count, load] / seconds:.3f}")


if __name__ == "__main__":
    main()
