"""Whether samples come nearer to real images as the UNet trains: `python -m studies.checkpoints`.

The UNet of params.yaml trains once more, for fewer steps. Its averaged weights are kept at even distances, and each
draws the same prompts from the same noise.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from ldm import randomness
from ldm.compute import fingerprint, saved, state
from ldm.core import artifact, config, stage, workspace
from ldm.core.config import Section
from ldm.core.params import Precision
from ldm.denoiser.model.network import Network
from ldm.denoiser.model.networks import build
from ldm.denoiser.training.batches import LatentBatches
from ldm.denoiser.training.inputs import check_fits, load_inputs
from ldm.denoiser.training.params import TrainUNetParams
from ldm.evaluation import metrics
from ldm.training.loop import train
from studies import intervals, study
from studies.lab import CHECKS
from studies.rows import Row, interval
from studies.study import Study

PRECISION: Precision = "bf16"
_AVERAGE = "ema.unet."
"""How the names of averaged weights begin in a saved state."""


class CheckpointsParams(Section):
    """Section `checkpoints`."""

    num_steps: int = Field(ge=4, le=10**6)
    """Steps of the training."""
    num_checkpoints: int = Field(ge=2, le=100)
    """Checkpoints at even distances, the end among them."""
    num_prompts: int = Field(ge=3, le=10**6)
    """Prompts of compositions that no training has seen."""

    @property
    def steps(self) -> list[int]:
        """After how many steps the weights are kept."""
        distance = self.num_steps // self.num_checkpoints
        return [distance * (i + 1) for i in range(self.num_checkpoints)]


def file_of(folder: Path, step: int) -> Path:
    """Where the averaged weights after a step are."""
    return folder / f"step-{step:09d}.safetensors"


def trained(this: Study[CheckpointsParams], folder: Path) -> Network:
    """Train, or go on, with the weights of every checkpoint in a folder. Returns the network."""
    paths, params = this.lab.paths, config.read(TrainUNetParams, "train_unet")
    folders = [Path(p) for p in (paths.latents, paths.captions, paths.embeddings, paths.autoencoder, paths.clip)]
    inputs = load_inputs(*folders, takes_pooled=params.network.takes_pooled)
    check_fits(params, inputs)
    first, *_, last = this.params.steps
    changes = {"num_steps": last, "save_every_steps": first, "num_kept_states": this.params.num_checkpoints}
    changes |= {"validate_every_steps": last, "precision": PRECISION, "num_accumulation_steps": 1}
    training = params.training.model_copy(update=changes)
    params = params.model_copy(update={"training": training})
    torch.manual_seed(randomness.key(training.seed, "weights"))
    unet = build(params.network)
    if all(file_of(folder, step).exists() for step in this.params.steps):
        return unet
    folder.mkdir(parents=True, exist_ok=True)

    made_by = fingerprint.of(str(this.script), params, inputs.sha256)
    run = state.Run(workspace.runs(paths.runs), "study_checkpoints_training", made_by)
    batches, objective = LatentBatches(inputs.train, params), inputs.train.text.objective(unet, params.diffusion)
    train(
        objective,
        batches,
        batches.keys,
        training,
        this.accelerator,
        run,
        validate=lambda _: {},
        name="checkpoints",
    )
    for directory in state.states_of(run.directory):
        found = saved.read(saved.check(directory))
        averaged = {name.removeprefix(_AVERAGE): t for name, t in found.tensors.items() if name.startswith(_AVERAGE)}
        artifact.write_tensors(file_of(folder, found.step), averaged)
    run.remove()
    return unet


def main() -> str:
    this = study.start(CheckpointsParams, "checkpoints", __file__)
    lab = this.lab
    cases = lab.cases("unseen", this.params.num_prompts)
    real = lab.features(cases.images)
    name = artifact.sha256_json([this.params.model_dump(mode="json"), lab.inputs])[:16]
    folder = workspace.runs(lab.paths.runs) / "studies" / f"checkpoints-{name}"
    before: dict[str, Tensor] = {}

    @cache
    def network() -> Network:
        return trained(this, folder).to(lab.device).eval().requires_grad_(False)

    def compute(step: int) -> dict[str, Tensor]:
        unet = network()
        unet.load_state_dict(artifact.open_tensors(file_of(folder, step)))
        images = lab.draw(cases.prompts, lab.drawing, unet=unet)
        return {"features": lab.features(images), **lab.workers.check(images, cases.claims)}

    def row(step: int, measured: Mapping[str, Tensor]) -> Row:
        numbers = {check: interval(metrics.proportion(measured[check].tolist())) for check in CHECKS}
        terms = intervals.kernel_terms(measured["features"], real)
        numbers["kid"] = interval(intervals.kernel_distance(terms))
        earlier = before.get("terms", terms)
        numbers["kid_less"] = interval(intervals.kernel_distance(earlier - terms))
        before["terms"] = terms
        return {"step": step, "count": len(cases), **numbers}

    work = {f"step_{step}": step for step in this.params.steps}
    return this.run(work, compute, row, {"cases": cases.sha256})


if __name__ == "__main__":
    stage.run(main)
