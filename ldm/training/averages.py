"""The averages of a training's weights: an exponential one, and by choice some by power functions (`profiles`).

The latter are kept in the run at even distances. An average of any other length, and of any step, is made of them when
the training is over.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ldm.compute import ranks
from ldm.compute.state import Run
from ldm.core import artifact
from ldm.core.errors import IntegrityError
from ldm.training import sharding
from ldm.training.optimizer import ema_decay_at
from ldm.training.params import AveragesParams, TrainingParams
from ldm.training.profiles import MAX_MISFIT, Base, decay_at, mixture

KIND = artifact.Kind("averages")
"""Kind of the artefact that holds averages of several lengths and steps, a file each."""
Weights = dict[str, Tensor]


class Averages:
    """Averages of trained weights, by name. `ema` is the exponential one."""

    def __init__(
        self, weights: Mapping[str, nn.Parameter], params: TrainingParams, kept: AveragesParams | None
    ) -> None:
        self._weights, self._params, self._kept = weights, params, kept
        self.ema = self._copy()
        self._powers = {length: self._copy() for length in (kept.lengths if kept else [])}

    def _copy(self) -> Weights:
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    @property
    def targets(self) -> dict[str, Weights]:
        """The tensors of every average, by its name in a saved state."""
        return {"ema": self.ema, **{_name(length): own for length, own in self._powers.items()}}

    def update(self, step: int) -> None:
        """Take in the weights after the update from `step` to `step + 1`."""
        weights = [weight.detach() for weight in self._weights.values()]
        decays = [ema_decay_at(step, self._params), *(decay_at(step, length) for length in self._powers)]
        for decay, own in zip(decays, self.targets.values(), strict=True):
            get_ema_multi_avg_fn(decay)(list(own.values()), weights, step)

    def swap(self) -> None:
        """Exchange weights and `ema`, in place."""
        for name, weight in self._weights.items():
            before = weight.detach().clone()
            weight.detach().copy_(self.ema[name])
            self.ema[name].copy_(before)

    def save(self, run: Run, step: int, *, is_main: bool) -> None:
        """Save the averages by power functions in the run, in half precision, if it is time to. Every process calls
        this; the main one writes."""
        if self._kept is not None and step in self._kept.steps(self._params.num_steps):
            names = {_name(length): own for length, own in self._powers.items()}
            halves = {f"{name}.{key}": value.half() for name, own in names.items() for key, value in own.items()}
            tensors = sharding.gathered(halves, is_kept=is_main)
            if is_main:
                run.keep(_unit(step), tensors)
            ranks.wait()

    def choose(self, run: Run) -> bool:
        """Make the average that the params choose, if any, of those kept in the run; it takes the place of `ema`.
        Returns whether there is one.

        IntegrityError: too much of what the run kept is damaged, or some of it for one process only.
        """
        if self._kept is None or self._kept.result is None:
            return False
        averages = list(_kept(run, self._kept, self._params.num_steps))
        # Where networks are split, nothing else would show that processes have made parts of different averages.
        ranks.agree({"averages that are whole": [base for base, _ in averages]}, "run this again")
        chosen = mixed(averages, self._params.num_steps, self._kept.result)
        for name, value in chosen.items():
            self.ema[name].copy_(sharding.like(self.ema[name], value))
        return True


def mixed(averages: Sequence[tuple[Base, Weights]], step: int, length: float) -> Weights:
    """The average of `length` after `step` updates, made of others in float32. IntegrityError: they are too few."""
    found = mixture([base for base, _ in averages], step, length)
    if found.misfit > MAX_MISFIT:
        steps = ", ".join(map(str, sorted({after for (after, _), _ in averages})))
        told = f"misfit {found.misfit:.2f} of length {length} at step {step}, made of those of steps {steps}"
        fix = "choose no result, or another length (this takes no step again), or train again"
        raise IntegrityError("averages", told, f"a misfit of at most {MAX_MISFIT}", fix)
    total = {name: torch.zeros(value.shape) for name, value in averages[0][1].items()}
    for share, (_, weights) in zip(found.shares, averages, strict=True):
        for name, value in weights.items():
            total[name].add_(value.float(), alpha=share)
    return total


def write(
    directory: Path,
    run: Run,
    kept: AveragesParams | None,
    num_steps: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Write what a run kept, if anything: a file of half-precision weights for each step and length, and a passport.

    Names of weights are those within the network, the one part of the objective that is trained. config, inputs, facts:
    as in the passport of the network.
    """
    if kept is None:
        return
    directory.mkdir()
    files: list[dict[str, Any]] = []
    for (step, length), weights in _kept(run, kept, num_steps):
        file = directory / f"{_name(length)}-{step:09d}.safetensors"
        artifact.write_tensors(file, {name.partition(".")[2]: value for name, value in weights.items()})
        files.append({"file": file.name, "step": step, "length": length, "sha256": artifact.sha256_file(file)})
    settings = {**config, "num_steps": num_steps, "averages": files}
    artifact.write_passport(directory, KIND, settings, inputs, facts, artifact.sha256_json(files))


def read(directory: Path) -> tuple[artifact.Passport, list[tuple[Base, Weights]]]:
    """What `write` wrote, the weights mapped into memory. IntegrityError: missing, corrupt or of another kind."""
    passport = artifact.read_passport(directory, KIND)
    files: list[dict[str, Any]] = passport.config["averages"]
    for entry in files:
        artifact.check_file(directory / entry["file"], entry["sha256"])
    opened = [artifact.open_tensors(directory / entry["file"]) for entry in files]
    bases = [(int(entry["step"]), float(entry["length"])) for entry in files]
    return passport, list(zip(bases, opened, strict=True))


def _kept(run: Run, kept: AveragesParams, num_steps: int) -> Iterator[tuple[Base, Weights]]:
    """The averages of a run, step by step. One that is damaged is reported and left out.

    IntegrityError: there is none.
    """
    units = ((step, run.kept(_unit(step))) for step in kept.steps(num_steps))
    found = [(step, unit.tensors) for step, unit in units if unit is not None]
    if not found:
        fix = "train again; averages are kept from the first step on"
        raise IntegrityError(str(run.directory), "no averages", "those that the training kept", fix)
    for step, tensors in found:
        for length in kept.lengths:
            start = f"{_name(length)}."
            own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            yield (step, length), own


def _name(length: float) -> str:
    """How an average is named in states and files; without a point, at which names of tensors are divided."""
    return f"average_{length:g}".replace(".", "_")


def _unit(step: int) -> str:
    return f"averages-{step:09d}"
