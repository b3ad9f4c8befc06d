"""The averages that the training of the UNet kept, and UNets of any other length and step, made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from ldm.core import artifact, stage
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser.model.networks import KIND
from ldm.training import averages
from ldm.training.averages import Weights
from ldm.training.profiles import MAX_LENGTH, MAX_MISFIT, MIN_LENGTH, Base, mixture

FOLDER = "averages"
"""Where they are, in the results of a training."""


@dataclass(frozen=True)
class KeptAverages:
    """The averages of one training, and the UNet that it made."""

    passport: artifact.Passport
    """Of the UNet."""
    sha256: str
    """Hash of the averages."""
    unet: Weights
    last_step: int
    """The end of the training, at which none may be left."""
    found: Sequence[tuple[Base, Weights]]

    @classmethod
    def load(cls, unet: Path, results: Path) -> Self:
        """Of a UNet and of the results of its training.

        ConfigError: the training kept none. IntegrityError: one of them is missing or corrupt, or they are of two
        trainings.
        """
        passport, weights = artifact.read(unet, KIND)
        folder = results / FOLDER
        if not folder.is_dir():
            fix = "set train_unet.averages, and run `dvc repro`"
            raise ConfigError(str(folder), "no averages: the training kept none", "those that it kept", fix)
        theirs, found = averages.read(folder)
        if theirs.inputs != passport.inputs or theirs.facts != passport.facts:
            expected = f"those of the training of {unet}"
            raise IntegrityError(str(folder), "averages of another training", expected, "run `dvc repro`")
        return cls(passport, theirs.content_sha256, weights, theirs.config["num_steps"], found)

    @property
    def bases(self) -> list[Base]:
        """Step and length of each, the newest step last."""
        return [base for base, _ in self.found]

    def misfit(self, step: int, length: float) -> float:
        """That of the mixture of this length and step.

        ConfigError: no average has this length, it is too far from those kept, or the step is after the end.
        """
        if not MIN_LENGTH <= length <= MAX_LENGTH:
            expected = f"one from {MIN_LENGTH} to {MAX_LENGTH}, as a share of the training"
            raise ConfigError("length", f"{length:g}", expected, "name one such as 0.1")
        if not 1 <= step <= self.last_step:
            fix = f"name one of {', '.join(map(str, sorted({step for step, _ in self.bases})))}"
            raise ConfigError("step", str(step), f"one from 1 to {self.last_step}, the end of the training", fix)
        misfit = mixture(self.bases, step, length).misfit
        if misfit > MAX_MISFIT:
            steps, lengths = (", ".join(map(str, sorted(set(each)))) for each in zip(*self.bases, strict=True))
            found = f"length {length} at step {step}: misfit {misfit:.2f} of what was kept"
            fix = f"name a step of {steps} and a length near to {lengths}"
            raise ConfigError("average", found, f"a misfit of at most {MAX_MISFIT}", fix)
        return misfit

    def weights(self, step: int, length: float) -> dict[str, Tensor]:
        """All weights of the UNet, those that were trained averaged. Errors: as `misfit`."""
        self.misfit(step, length)
        return {**self.unet, **averages.mixed(self.found, step, length)}

    def write(self, folder: Path, step: int, length: float) -> None:
        """Write the average into a folder that is there, as a trained UNet. Errors: as `misfit`."""
        inputs = {**self.passport.inputs, "averages": self.sha256}
        facts = {**self.passport.facts, "average": {"step": step, "length": length}}
        artifact.write(folder, KIND, self.passport.config, self.weights(step, length), inputs, facts)


def write(unet: Path, results: Path, output: Path, step: int | None, length: float) -> str:
    """Write the average of a length at a step (None: the last one) as a UNet of its own; returns a line for the log.

    ConfigError: the output exists, or as `KeptAverages.misfit`. IntegrityError: as `KeptAverages.load`.
    """
    if output.exists():
        raise ConfigError("--output", f"{output} exists", "a new folder", "name another one, or remove it")
    kept = KeptAverages.load(unet, results)
    step = step or kept.last_step
    misfit = kept.misfit(step, length)
    with stage.output(output) as folder:
        kept.write(folder, step, length)
    return f"average of length {length} at step {step} (misfit {misfit:.3f}) -> {output}"
