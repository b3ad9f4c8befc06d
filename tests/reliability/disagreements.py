"""Two processes of one launch that do not agree, or one of which dies: all end at once, and no step is a mixture."""

import errno
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ldm.compute import saved
from ldm.core.errors import IntegrityError, Stopped
from ldm.training import loop
from tests.forked import Ended, run_two
from tests.reliability.report import Result
from tests.toy_training import Batches, Toy, params, run_toy

_SAVED_AT = 16
_INTEGRITY, _MACHINE = 4, 5
_OTHER_PARAMS: tuple[dict[str, Any], ...] = (
    {"learning_rate": 2e-2},
    {"num_steps": 21},
    {"ema_decay": 0.8},
    {"save_every_steps": 5},
    {"log_every_steps": 2},
    {"seed": 1},
)


def disagreeing_ranks(folder: Path, trials: int, seed: int) -> Result:
    """One of two processes, either of them, has something else than the other, or dies."""
    draw, counts, failures = random.Random(seed), Counter[str](), list[str]()
    saved = folder / "saved"
    saved_run(saved)
    for trial in range(trials):
        kind, victim = list(KINDS)[trial % len(KINDS)], draw.randrange(2)
        root = folder / f"trial-{trial}"
        shutil.copytree(saved, root / "runs")
        problem = KINDS[kind](root, victim, draw)
        counts[kind] += 1
        if problem:
            failures.append(f"{kind} on process {victim}: {problem}")
        shutil.rmtree(root)
    return Result(trials, trials - len(failures), dict(counts), tuple(failures))


def saved_run(root: Path) -> None:
    """States of a stopped training, the newest after 16 steps and the one before after 14."""
    with suppress(Stopped):
        run_toy(root, params(), kill_at=_SAVED_AT - 1)


def _steps(root: Path, rank: int) -> list[int]:
    """Steps whose batches a process drew."""
    path = root / f"steps-{rank}.txt"
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


class _Recorded(Batches):
    """Batches that note their steps."""

    def __init__(self, root: Path, rank: int, chosen: Any) -> None:
        super().__init__(chosen)
        self._path = root / f"steps-{rank}.txt"

    def __call__(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        with self._path.open("a") as file:
            file.write(f"{step}\n")
        return super().__call__(step, rows)


def _train(root: Path, rank: int, *, batches: Batches | None = None, **changes: Any) -> None:
    """Go on with the toy, on one of two processes. `toy`, `code` and `runs` are its own, all else are params."""
    toy, code, runs = changes.pop("toy", None), changes.pop("code", "1"), changes.pop("runs", root / "runs")
    chosen = params(**changes)
    run_toy(runs, chosen, toy=toy, batches=batches or _Recorded(root, rank, chosen), code=code)


def _named(ended: list[Ended], *words: str) -> str:
    """What is wrong with an end on which both processes should say who has what, or nothing."""
    if [each.code for each in ended] != [_INTEGRITY, _INTEGRITY]:
        return f"ended with {[each.code for each in ended]}: {ended[0].said[-800:]} {ended[1].said[-800:]}"
    wanted = ("process 0", "process 1", "fix:", *words)
    missing = [word for each in ended for word in wanted if word not in each.said]
    return f"{missing} missing in {ended[0].said} {ended[1].said}" if missing else ""


def _refused_before_any_step(root: Path, ended: list[Ended], *words: str) -> str:
    steps = [_steps(root, rank) for rank in range(2)]
    return f"steps {steps} were taken" if any(steps) else _named(ended, *words)


def _other_state(root: Path, victim: int, draw: random.Random) -> str:
    """The newest state cannot be read once, or is another one, on one process. Where that one chooses, both take the
    state before it."""
    number = draw.choice([errno.EIO, errno.ESTALE, 0])

    def work(rank: int) -> None:
        if rank == victim:
            real, calls = saved.check, [0]

            def fails_once(directory: Path, manifest_sha256: str | None = None) -> saved.Saved:
                calls[0] += 1
                if calls[0] > 1:
                    return real(directory, manifest_sha256)
                text = os.strerror(number) if number else "SHA-256 of another state"
                raise IntegrityError(str(directory), text, "a state", "see `ldm runs`")

            saved.check = fails_once
        _train(root, rank)

    ended = run_two(root, work)
    if victim == 1:
        return _refused_before_any_step(root, ended, f"step-{_SAVED_AT:09d}")
    steps = [_steps(root, rank) for rank in range(2)]
    is_good = [each.code for each in ended] == [0, 0] and steps == [list(range(14, 20))] * 2
    return "" if is_good else f"steps {steps}, {ended}"


def _other_folder(root: Path, victim: int, draw: random.Random) -> str:
    """One process sees another folder of runs: no file system that they share."""
    (root / "elsewhere").mkdir()

    def work(rank: int) -> None:
        _train(root, rank, runs=root / ("elsewhere" if rank == 1 else "runs"))

    return _refused_before_any_step(root, run_two(root, work), f"step-{_SAVED_AT:09d}")


def _other_params(root: Path, victim: int, draw: random.Random) -> str:
    change = draw.choice(_OTHER_PARAMS)

    def work(rank: int) -> None:
        _train(root, rank, **(change if rank == victim else {}))

    return _refused_before_any_step(root, run_two(root, work), *change)


def _other_code(root: Path, victim: int, draw: random.Random) -> str:
    def work(rank: int) -> None:
        _train(root, rank, code="2" if rank == victim else "1")

    return _refused_before_any_step(root, run_two(root, work), "code.toy")


def _other_weights(root: Path, victim: int, draw: random.Random) -> str:
    """At a fresh start, or after the state was read; in a weight, an average or a moment."""
    is_fresh, number = draw.random() < 0.5, draw.randrange(10**6)

    def work(rank: int) -> None:
        if rank == victim and not is_fresh:
            real = loop._Training.restore

            def restore(running: loop._Training, found: saved.State) -> None:
                real(running, found)
                kept = map(running.optimizers.moments, running.weights.values())
                moments = [value for part in kept for value in part.values()]
                tensors = [*running.weights.values(), *running.averages.ema.values(), *moments]
                tensors[number % len(tensors)].data.flatten()[0] += 1e-3

            loop._Training.restore = restore  # type: ignore[method-assign]
        toy = Toy(seed=3) if rank == victim and is_fresh else Toy()
        _train(root, rank, toy=toy, runs=root / ("fresh" if is_fresh else "runs"))

    return _refused_before_any_step(root, run_two(root, work))


def _other_order(root: Path, victim: int, draw: random.Random) -> str:
    step = _SAVED_AT + draw.randrange(3)

    class Other(_Recorded):
        def keys(self, at: int) -> list[str]:
            return super().keys(at + (at == step))

    def work(rank: int) -> None:
        chosen = params()
        _train(root, rank, batches=Other(root, rank, chosen) if rank == victim else None)

    return _refused_before_any_step(root, run_two(root, work), f"the batch of step {step + 1}")


def _drift(root: Path, victim: int, draw: random.Random) -> str:
    """A weight of one process changes on the way: nothing is saved after that."""
    step, runs = draw.randrange(1, 19), root / "fresh"

    def work(rank: int) -> None:
        toy, chosen = Toy(), params()

        class Drifting(_Recorded):
            def __call__(self, at: int, rows: slice) -> dict[str, torch.Tensor]:
                if rank == victim and at == step:
                    next(weight for weight in toy.parameters() if weight.requires_grad).data += 1e-3
                return super().__call__(at, rows)

        _train(root, rank, toy=toy, batches=Drifting(root, rank, chosen), runs=runs)

    problem = _named(run_two(root, work), "weights.net.0.weight")
    late = [path.name for path in runs.rglob("step-*") if path.is_dir() and int(path.name[5:]) > step]
    return problem or (f"saved {late} after step {step}" if late else "")


def _killed(root: Path, victim: int, draw: random.Random) -> str:
    """One process is killed in training: the other ends at once, without a step of its own."""
    step = draw.randrange(_SAVED_AT, 20)

    def work(rank: int) -> None:
        class Killed(_Recorded):
            def __call__(self, at: int, rows: slice) -> dict[str, torch.Tensor]:
                if rank == victim and at == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(at, rows)

        _train(root, rank, batches=Killed(root, rank, params()))

    ended = run_two(root, work)
    codes = [ended[victim].code, ended[1 - victim].code]
    if codes != [-signal.SIGKILL, _MACHINE] or "another one ended" not in ended[1 - victim].said:
        return f"ended with {codes}: {ended[1 - victim].said[-1500:]}"
    steps = _steps(root, 1 - victim)
    return "" if max(steps) <= step else f"steps {steps}, killed at {step}"


KINDS: dict[str, Callable[[Path, int, random.Random], str]] = {
    "state": _other_state,
    "params": _other_params,
    "code": _other_code,
    "order": _other_order,
    "weights": _other_weights,
    "killed": _killed,
    "folder of runs": _other_folder,
    "drift": _drift,
}
