"""Whether scores of a model that never saw a shape tell scenes with it from others: `python -m studies.anomaly`.

An autoencoder and a UNet are trained on the corpus without all scenes that show the shape, by the stages' own scripts
in a folder of `runs/`. Usual scenes are validation scenes without the shape, unusual ones those with it, as many of
each number of objects. The control is the default model, which knows the shape.
"""

import copy
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from ldm import randomness
from ldm.autoencoder.model.network import to_signal
from ldm.core import artifact, config, stage, workspace
from ldm.core.config import Section
from ldm.core.params import MachineParams, PathsParams
from ldm.corpora import kinds, preparation
from ldm.corpora.pairs import Pair
from ldm.corpora.params import PrepareParams
from ldm.denoiser.model.diffusion import Denoiser
from ldm.evaluation.metrics import Estimate
from ldm.sampling.generator import Generator
from ldm.tools import probability_flow
from ldm.tools.pipeline import Pipeline
from ldm.tools.tasks.anomaly import reconstruction_error, roc_area
from studies import study
from studies.rows import Row, interval
from studies.study import Study

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT, DEFAULT = "without the shape", "default (control)"
RECONSTRUCTION, LIKELIHOOD, AUTOENCODER = "reconstruction", "likelihood", "autoencoder alone"
STAGES = {
    "train_autoencoder": "autoencoder",
    "encode_latents": "latents",
    "embed_text": "embeddings",
    "train_unet": "unet",
}
"""Stages that train the model, in order, and what each makes."""


class AnomalyParams(Section):
    """Section `anomaly`."""

    shape: str
    """The shape that training does not see."""
    num_train: int = Field(ge=32, le=10**6)
    """Training scenes, before those with the shape are left out."""
    autoencoder_steps: int = Field(ge=1, le=10**6)
    """Steps of the autoencoder's training."""
    unet_steps: int = Field(ge=1, le=10**6)
    """Steps of the UNet's training."""
    num_images: int = Field(ge=2, le=10**6)
    """Usual images, and as many unusual ones (fewer if there are fewer)."""
    times: list[float]
    """Times at which the reconstruction error is measured."""
    num_noises: int = Field(ge=1, le=1000)
    """Noises per time."""
    num_probes: int = Field(ge=1, le=1000)
    """Probes of the likelihood."""
    tolerance: float = Field(gt=0, le=1)
    """Tolerance of the likelihood's solver."""


def shows(scene: Mapping[str, Any], shape: str) -> bool:
    """Whether an object of a scene has the shape."""
    return any(drawn["shape"] == shape for drawn in scene["objects"])


def matched(scenes: Sequence[Mapping[str, Any]], shape: str, count: int) -> tuple[list[int], list[int]]:
    """Numbers of usual and of unusual scenes, at most `count` each, as many of each number of objects: scenes of more
    objects are harder for every model, and show the shape more often."""
    found: tuple[list[int], list[int]] = ([], [])
    for size in sorted({len(scene["objects"]) for scene in scenes}):
        own = [i for i, scene in enumerate(scenes) if len(scene["objects"]) == size]
        sides = [[i for i in own if shows(scenes[i], shape) == is_unusual] for is_unusual in (False, True)]
        for side, chosen in zip(found, sides, strict=True):
            side += chosen[: min(map(len, sides))]
    # In the order of the scenes, so that a cut keeps the mixture of sizes.
    usual, unusual = (sorted(side)[:count] for side in found)
    return usual, unusual


def params_without(params: AnomalyParams, base: Mapping[str, Any]) -> dict[str, Any]:
    """params.yaml of the training, from that of the default."""
    changed = copy.deepcopy(dict(base))
    changed["prepare"]["corpus"] |= {"num_train": params.num_train, "num_unseen": 2, "num_held_out": 2}
    changed["encode_latents"]["statistics_tolerance"] = 0.2  # it changes no latent, and this autoencoder trains less
    for name, num_steps in (("train_autoencoder", params.autoencoder_steps), ("train_unet", params.unet_steps)):
        changed[name]["training"] |= {
            "num_steps": num_steps,
            "num_warmup_steps": min(100, num_steps // 2),
            "validate_every_steps": num_steps,
        }
    return changed


def train(folder: Path, params: AnomalyParams, clip: Path) -> None:
    """Make a model in a folder, or what of it is not there yet. CalledProcessError: a stage ended with an error, which
    it has printed."""
    folder.mkdir(parents=True, exist_ok=True)
    values = params_without(params, config.Document(config.PARAMS).data)
    (folder / config.PARAMS).write_text(json.dumps(values), encoding="utf-8")
    (folder / config.PATHS).write_text(config.PATHS.read_text(encoding="utf-8"), encoding="utf-8")
    paths = config.read(PathsParams, "paths", folder / config.PATHS)
    if not (folder / paths.images).exists():
        _prepare(folder, paths, params.shape)
    if not (folder / paths.clip).exists():
        (folder / paths.clip).symlink_to(clip.resolve())
    for name, made in STAGES.items():
        if not (folder / str(getattr(paths, made))).exists():
            subprocess.run([sys.executable, str(ROOT / "stages" / f"{name}.py")], cwd=folder, check=True)


def _prepare(folder: Path, paths: PathsParams, shape: str) -> None:
    """Stage `prepare` without the scenes that show the shape."""
    section = config.read(PrepareParams, "prepare", folder / config.PARAMS)
    machine = config.read(MachineParams, "machine", folder / config.PARAMS)

    def usual(pair: Pair) -> bool:
        assert pair.scene is not None, "the corpus has scenes"
        return not shows(pair.scene, shape)

    images, captions = folder / paths.images, folder / paths.captions
    with stage.outputs(images, captions) as (image_shards, caption_shards):
        with stage.output(folder / paths.prepare_results) as results:
            found = kinds.pairs(section, folder / paths.source)
            pairs = (pair for pair in found if isinstance(pair, Pair) and usual(pair))
            preparation.prepare(pairs, image_shards, caption_shards, results, section, machine.num_workers)
        preparation.write_passports(image_shards, caption_shards, section)


def scores(
    this: Study[AnomalyParams], generator: Generator, kind: str, images: UInt8[Tensor, "n 3 h w"]
) -> Float[Tensor, "n"]:
    """How unusual each image is, without a prompt; higher = more."""
    params, seed = this.params, this.lab.drawing.seed
    drawing = this.lab.drawing.model_copy(update={"guidance_scale": 1.0, "precision": "fp32"})

    def noise(rows: range, purpose: str, i: int) -> Tensor:
        keys = [randomness.generator(seed, purpose, i, row) for row in rows]
        return torch.stack([torch.randn(generator.latent_shape, generator=key) for key in keys]).to(generator.device)

    def latent_scores(denoise: Denoiser, z0: Tensor, rows: range) -> Tensor:
        if kind == RECONSTRUCTION:
            noises = torch.stack([noise(rows, "score", i) for i in range(params.num_noises)])
            return reconstruction_error(denoise, generator.schedule, z0, params.times, noises)
        probes = torch.stack([noise(rows, "probe", i).sign() for i in range(params.num_probes)])
        return probability_flow.bits_per_dimension(denoise, generator.schedule, z0, probes, params.tolerance)

    def batch(rows: range) -> Tensor:
        pixels = images[rows.start : rows.stop]
        z0 = generator.encode(pixels)
        if kind == AUTOENCODER:
            error = generator.signals_of(z0) - to_signal(pixels.to(generator.device))
            return error.square().flatten(1).mean(1).cpu()
        denoise = generator.guided(generator.null_condition.expand(len(z0)), drawing)
        return latent_scores(denoise, z0, rows).detach().cpu()

    return this.lab.in_batches(batch, len(images))


def main() -> str:
    this = study.start(AnomalyParams, "anomaly", __file__)
    lab, params = this.lab, this.params
    cases = lab.cases("val", 10**6)
    usual, unusual = matched(cases.scenes, params.shape, params.num_images)
    images = cases.images[usual + unusual]
    name = artifact.sha256_json([params.model_dump(mode="json"), lab.inputs])[:16]
    folder = workspace.runs(lab.paths.runs) / "studies" / f"anomaly-{name}"

    @cache
    def generator_of(model: str) -> Generator:
        if model == DEFAULT:
            return lab.pipeline.generator
        train(folder, params, Path(lab.paths.clip))
        return Pipeline.load(folder, lab.device).generator

    def compute(work: tuple[str, str]) -> dict[str, Tensor]:
        model, kind = work
        return {"scores": scores(this, generator_of(model), kind, images)}

    def row(work: tuple[str, str], measured: Mapping[str, Tensor]) -> Row:
        model, kind = work
        area = roc_area(measured["scores"][: len(usual)], measured["scores"][len(usual) :])
        found = interval(Estimate(*area, len(images)))
        return {"model": model, "score": kind, "shape": params.shape, "count": len(images), "area": found}

    pairs = list(product((LEFT_OUT, DEFAULT), (RECONSTRUCTION, LIKELIHOOD, AUTOENCODER)))
    work = {f"{model.split()[0]}_{kind.split()[0]}": (model, kind) for model, kind in pairs}
    return this.run(work, compute, row, {"cases": cases.sha256})


if __name__ == "__main__":
    stage.run(main)
