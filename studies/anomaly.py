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
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from ldm.core import artifact, config, stage, workspace
from ldm.core.config import Section
from ldm.core.params import MachineParams, PathsParams
from ldm.corpora import kinds, preparation
from ldm.corpora.pairs import Pair
from ldm.corpora.params import PrepareParams
from ldm.evaluation.metrics import Estimate
from ldm.sampling.generator import Generator
from ldm.tools.pipeline import Pipeline
from ldm.tools.tasks import pictures
from ldm.tools.tasks.anomaly import roc_area
from ldm.tools.tasks.draw import Batch
from ldm.tools.tasks.scores import scores
from studies import study
from studies.lab import Lab
from studies.rows import Row, interval

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT, DEFAULT = "without the shape", "default (control)"
SCORES = ("reconstruction_error", "bits_per_dimension", "autoencoder_error")
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


def shows(scene: Mapping[str, Any], shape: str) -> bool:
    """Whether an object of a scene has the shape."""
    return any(drawn["shape"] == shape for drawn in scene["objects"])


def matched(scenes: Sequence[Mapping[str, Any]], shape: str, count: int) -> tuple[list[int], list[int]]:
    """Numbers of usual and of unusual scenes, at most `count` each, as many of each number of objects: scenes of more
    objects are harder for every model, and show the shape more often."""
    pairs: list[tuple[int, int]] = []
    for size in sorted({len(scene["objects"]) for scene in scenes}):
        own = [i for i, scene in enumerate(scenes) if len(scene["objects"]) == size]
        usual, unusual = ([i for i in own if shows(scenes[i], shape) == is_unusual] for is_unusual in (False, True))
        pairs += zip(usual, unusual, strict=False)
    # In the order of the unusual scenes, so that a cut keeps the mixture of sizes.
    chosen = sorted(pairs, key=lambda pair: pair[1])[:count]
    return sorted(first for first, _ in chosen), sorted(second for _, second in chosen)


def params_without(params: AnomalyParams, base: Mapping[str, Any]) -> dict[str, Any]:
    """params.yaml of the training, from that of the default."""
    changed = copy.deepcopy(dict(base))
    changed["prepare"]["corpus"] |= {
        "num_train": params.num_train,
        "num_reworded": 2,
        "num_unseen": 2,
        "num_held_out": 2,
    }
    changed["encode_latents"]["statistics_tolerance"] = 0.2  # it changes no latent, and this autoencoder trains less
    owners = changed["train_autoencoder"]["source"], changed["train_unet"]
    for owner, num_steps in zip(owners, (params.autoencoder_steps, params.unet_steps), strict=True):
        owner["training"] |= {
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


def scores_of(lab: Lab, generator: Generator, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, Float[Tensor, "n"]]:
    """How unusual each image is, without a prompt, by name of the score; higher = more."""
    params = lab.pipeline.tasks.score

    def batch(rows: range) -> Tensor:
        pixels = images[rows.start : rows.stop]
        given = [{"image": pictures.of(image.permute(1, 2, 0).numpy())} for image in pixels]
        null = generator.null_condition.expand(len(pixels))
        found = scores(params, Batch(generator, null, rows, lab.drawing, given, null))
        return torch.stack([found[name] for name in SCORES], dim=1)

    return dict(zip(SCORES, lab.in_batches(batch, len(images)).unbind(1), strict=True))


def main() -> str:
    this = study.start(AnomalyParams, "anomaly", __file__)
    lab, params = this.lab, this.params
    cases = lab.cases("val", 10**6)
    usual, unusual = matched(cases.scenes, params.shape, params.num_images)
    images = cases.images[usual + unusual]
    name = artifact.sha256_json([params.model_dump(mode="json"), lab.inputs])[:16]
    folder = workspace.runs(lab.paths.runs) / "studies" / f"anomaly-{name}"

    def compute(model: str) -> dict[str, Tensor]:
        if model == DEFAULT:
            return scores_of(lab, lab.pipeline.generator, images)
        train(folder, params, Path(lab.paths.clip))
        return scores_of(lab, Pipeline.load(folder, lab.device).generator, images)

    def row(model: str, measured: Mapping[str, Tensor]) -> Row:
        areas = {name: roc_area(measured[name][: len(usual)], measured[name][len(usual) :]) for name in SCORES}
        found = {name: interval(Estimate(*area, len(images))) for name, area in areas.items()}
        return {"model": model, "shape": params.shape, "count": len(images), **found}

    work = {"left_out": LEFT_OUT, "default": DEFAULT}
    return this.run(work, compute, row, {"cases": cases.sha256})


if __name__ == "__main__":
    stage.run(main)
