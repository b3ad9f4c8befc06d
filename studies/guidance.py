"""Guidance against accuracy, diversity and saturation: `python -m studies.guidance`.

Each prompt is drawn from two noises. Accuracy counts both images. Diversity is the distance between the two in the
feature space of the corpus, and recall: the share of real images that lie among the samples. Saturation is the share
of colour values at 0 or 255, and chroma.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field, JsonValue
from skimage import color
from torch import Tensor

from ldm.core import stage
from ldm.core.config import Section
from ldm.evaluation import metrics
from ldm.evaluation.metrics import Estimate
from ldm.sampling.params import DrawingParams
from studies import classifier, intervals, study
from studies.lab import CHECKS
from studies.rows import Row, interval


class GuidanceParams(Section):
    """Section `guidance`: what a guidance scale does to accuracy, diversity and saturation."""

    num_prompts: int = Field(ge=4, le=10**6)
    """Prompts, as of `quality`; each is drawn from two noises."""
    settings: list[dict[str, JsonValue]]
    """What differs from the drawing of params.yaml, by field of it."""


def named(settings: Mapping[str, JsonValue]) -> str:
    """Settings in a few words, such as scale 2.5, rescale 0.7."""
    return ", ".join(f"{field.removeprefix('guidance_')} {_text(value)}" for field, value in settings.items())


def _text(value: JsonValue) -> str:
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return _text(value["kind"]) if isinstance(value, dict) else f"{value}"


def clipped(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n"]:
    """Share of the values of each image that are 0 or 255."""
    return ((images == 0) | (images == 255)).double().flatten(1).mean(1)


def chroma(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n"]:
    """Mean chroma of the pixels of each image: distance from grey in CIELAB."""
    lab = torch.from_numpy(color.rgb2lab(images.permute(0, 2, 3, 1).numpy()))
    return torch.hypot(lab[..., 1], lab[..., 2]).flatten(1).mean(1)


def over_prompts(values: Tensor) -> Estimate:
    """The mean of values of the images from the first noise and then of those from the second. Its interval counts both
    images of a prompt as one: they are alike."""
    first, second = values.double().chunk(2)
    return metrics.mean_interval((first + second) / 2)


def share(hits: Bool[Tensor, "n"]) -> Estimate:
    """The share of true values, as `over_prompts`. Where all are alike, that interval would have width 0; then it is
    Wilson's for as many as there are prompts."""
    found = over_prompts(hits)
    if found.value in (0, 1):
        return metrics.proportion(hits.chunk(2)[0].tolist())
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def measures(measured: Mapping[str, Tensor], real: Float[Tensor, "n f"]) -> dict[str, Estimate]:
    """The estimates of one scale. measured: rows of the images from the first noise, then of those from the second."""
    first, second = measured["features"].double().chunk(2)
    found = {name: share(measured[name]) for name in CHECKS}
    found["pair_distance"] = metrics.mean_interval((first - second).norm(dim=1))
    found["recall"] = metrics.proportion(intervals.is_covered(real, measured["features"]).tolist())
    found["precision"] = share(intervals.is_covered(measured["features"], real))
    found["clipped"] = over_prompts(measured["clipped"])
    found["chroma"] = over_prompts(measured["chroma"])
    return found


def main() -> str:
    this = study.start(GuidanceParams, "guidance", __file__)
    drawings = {named(settings): this.lab.drawing.changed(settings) for settings in this.params.settings}
    if any(drawing.guidance.kind == "classifier" for drawing in drawings.values()) and not classifier.OUTPUT.is_dir():
        classifier.run(classifier.OUTPUT, this.lab.paths)
    cases = this.lab.cases("unseen", this.params.num_prompts)
    real = this.lab.features(cases.images)

    def compute(drawing: DrawingParams) -> dict[str, Tensor]:
        images = this.lab.draw(cases.prompts * 2, drawing)
        saturation = {"clipped": clipped(images), "chroma": chroma(images)}
        checks = this.lab.workers.check(images, cases.claims * 2)
        return {"features": this.lab.features(images), **saturation, **checks}

    def row(drawing: DrawingParams, measured: Mapping[str, Tensor]) -> Row:
        numbers = {name: interval(value) for name, value in measures(measured, real).items()}
        return {"scale": drawing.guidance_scale, "count": 2 * len(cases), **numbers}

    return this.run(drawings, compute, row, {"cases": cases.sha256})


if __name__ == "__main__":
    stage.run(main)
