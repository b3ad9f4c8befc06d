"""The order of samples for any number of processes, and updates that are not finite."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm import randomness
from ldm.core.errors import Stopped
from ldm.training.batches import rows_of_pass
from tests import test_training_loop
from tests.reliability.report import Result
from tests.toy_training import Batches, Toy, params, run_toy

_WORLDS = (1, 2, 3, 4, 6, 8, 12, 16)
_ACCUMULATIONS = (1, 2, 4)
_BATCH_SIZE, _COUNT, _NUM_EPOCHS = 192, 1000, 2
_BAD_FACTORS = (float("nan"), float("inf"), float("-inf"), 1e30)


def orders(folder: Path, trials: int, seed: int) -> Result:
    """World sizes x accumulations x points at which a run is stopped and goes on with another number of processes: the
    pure functions that say who takes which sample."""
    draw, failures, done = random.Random(seed), list[str](), 0
    num_steps = -(-_NUM_EPOCHS * _COUNT // _BATCH_SIZE)
    whole = randomness.order(np.arange(num_steps * _BATCH_SIZE), _COUNT, seed)
    for epoch in range(_NUM_EPOCHS):
        assert sorted(whole[epoch * _COUNT : (epoch + 1) * _COUNT].tolist()) == list(range(_COUNT))
    cases = [(world, passes) for world in _WORLDS for passes in _ACCUMULATIONS if _BATCH_SIZE % (world * passes) == 0]
    while done < trials:
        first, second = cases[done % len(cases)], draw.choice(cases)
        stop = draw.randrange(num_steps + 1)
        seen = _drawn(range(stop), *first, seed) + _drawn(range(stop, num_steps), *second, seed)
        if seen != whole.tolist():
            failures.append(f"{first} then {second} from step {stop}")
        done += 1
    return Result(done, done - len(failures), {}, tuple(failures))


def _drawn(steps: range, world: int, passes: int, seed: int) -> list[int]:
    """Samples in the order of their rows in the global batches, drawn rank by rank as the training loop does."""
    size = _BATCH_SIZE // (world * passes)
    seen: list[int] = []
    for step in steps:
        for i in range(passes):
            for rank in range(world):
                rows = rows_of_pass(i, rank, world, size)
                positions = (step * _BATCH_SIZE + np.arange(_BATCH_SIZE))[rows]
                seen += randomness.order(positions, _COUNT, seed).tolist()
    return seen


def world_changes(folder: Path, trials: int, seed: int) -> Result:
    """A run of one process goes on with two: its losses are those of one process to 1e-5, in bf16 to 2e-3."""
    draw, failures = random.Random(seed), list[str]()
    tolerances = {"fp32": 1e-5, "bf16": 2e-3}
    for trial in range(trials):
        precision, stop = draw.choice(list(tolerances)), draw.randrange(1, 18)
        changes: dict[str, Any] = {"precision": precision, "log_every_steps": 1}
        _, whole = run_toy(folder / f"{trial}-whole", params(**changes))
        two = folder / f"{trial}-two"
        with suppress(Stopped):
            run_toy(folder / f"{trial}-one" / "run", params(**changes), kill_at=stop)
        test_training_loop.launch(two, {"run": changes}, started=folder / f"{trial}-one")
        training, validation = json.loads((two / "run.json").read_text())
        pairs = list(zip([*whole.training, *whole.validation], [*training, *validation], strict=True))
        if not all(abs(a["loss"] - b["loss"]) <= tolerances[precision] for a, b in pairs):
            failures.append(f"{precision}, stopped at {stop}: {[a['loss'] - b['loss'] for a, b in pairs]}")
    return Result(trials, trials - len(failures), {}, tuple(failures))


class _Poisoned(Batches):
    """Batches some of which have a factor that is not finite, or so large that gradients are not; and the weights
    before every update."""

    def __init__(self, chosen: Any, bad: Mapping[int, tuple[int, float]], toy: Toy) -> None:
        super().__init__(chosen)
        self.poison, self.toy = bad, toy
        self.before: dict[int, list[Tensor]] = {}

    def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
        if rows.start == 0:
            self.before[step] = [weight.detach().clone() for weight in self.toy.parameters()]
        batch = super().__call__(step, rows)
        if step in self.poison:
            row, factor = self.poison[step]
            if rows.start <= row < rows.stop:
                batch["factor"][row - rows.start] = factor
        return batch


def poisoned(folder: Path, trials: int, seed: int) -> Result:
    """NaN, infinity or a spike in a random row of a random batch: that update leaves every weight alone, and a run that
    is stopped on the way decides as one that is not."""
    draw, failures, counts, done = random.Random(seed), list[str](), Counter[str](), 0
    chosen = params(num_steps=30, num_accumulation_steps=2, max_nonfinite_steps=30)
    while done < trials:
        steps = draw.sample(range(1, 30), min(10, trials - done))
        bad = {step: (draw.randrange(8), draw.choice(_BAD_FACTORS)) for step in steps}
        toy = Toy()
        batches = _Poisoned(chosen, bad, toy)
        _, whole = run_toy(folder / "whole", chosen, toy=toy, batches=batches)
        batches.before[chosen.num_steps] = [weight.detach().clone() for weight in _last_weights(folder / "whole", toy)]
        stop = draw.randrange(1, 29)
        toy = Toy()
        with suppress(Stopped):
            run_toy(folder / "stopped", chosen, toy=toy, batches=_Poisoned(chosen, bad, toy), kill_at=stop)
        toy = Toy(seed=3)
        _, again = run_toy(folder / "stopped", chosen, toy=toy, batches=_Poisoned(chosen, bad, toy))
        for step in range(chosen.num_steps):
            is_equal = all(map(torch.equal, batches.before[step], batches.before[step + 1]))
            if is_equal != (step in bad):
                failures.append(f"step {step} with {bad.get(step)}: weights {'kept' if is_equal else 'moved'}")
        if [row["step"] - 1 for row in whole.skipped] != sorted(bad) or again.skipped != whole.skipped:
            failures.append(f"{bad}, stopped at {stop}: skipped {whole.skipped} and {again.skipped}")
        for factor in bad.values():
            counts[str(factor[1])] += 1
        done += len(bad)
        shutil.rmtree(folder / "whole")
        shutil.rmtree(folder / "stopped")
    return Result(done, done - len(failures), dict(counts), tuple(failures))


def poisoned_ranks(folder: Path, trials: int, seed: int) -> Result:
    """Infinity in random rows on two real processes, one of which is asked to stop on the way: both skip those updates
    and no others, and end with the weights of one process."""
    draw, failures, done = random.Random(seed), list[str](), 0
    while done < trials:
        steps = sorted(draw.sample(range(1, 60), min(20, trials - done)))
        bad = {step: draw.randrange(8) for step in steps}
        changes: dict[str, Any] = {"num_steps": 60, "log_every_steps": 1, "max_nonfinite_steps": 60}
        two = folder / f"two-{done}"
        test_training_loop.launch(two, {"run": changes | {"bad": bad, "kill_at": draw.randrange(1, 58)}})
        training, _ = json.loads((two / "run.json").read_text())
        counts = [0, *(row["num_skipped"] for row in training)]
        skipped = [step for step in range(60) if counts[step + 1] > counts[step]]
        chosen = params(**changes)
        toy, _ = run_toy(folder / f"one-{done}", chosen, batches=Batches(chosen, bad))
        difference = test_training_loop.largest_difference(toy.state_dict(), load_file(two / "run.safetensors"))
        if skipped != steps or difference > 1e-4:
            failures.append(f"{bad}: skipped {skipped}, weights differ by {difference}")
        done += len(bad)
    return Result(done, done - len(failures), {}, tuple(failures))


def _last_weights(folder: Path, toy: Toy) -> list[Tensor]:
    """The weights of the last state, in the order of the parameters; frozen ones are not saved."""
    saved = load_file(max(folder.rglob("step-*")) / "tensors.safetensors")
    return [saved.get(f"weights.{name}", weight) for name, weight in toy.named_parameters()]
