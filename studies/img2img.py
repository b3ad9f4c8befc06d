"""How far an image moves from the input, and towards another prompt, as strength grows: `python -m studies.img2img`.

Each real image is drawn anew with the prompt of another one, half the images away.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from ldm.core import stage
from ldm.core.config import Section
from ldm.evaluation import metrics
from ldm.tools.tasks import pictures
from studies import study
from studies.rows import Row, interval

DISTANCES = ("pixels", "features")


class Img2imgParams(Section):
    """Section `img2img`."""

    num_images: int = Field(ge=4, le=10**6)
    """Images and prompts, of compositions that no training has seen."""
    strengths: list[Annotated[float, Field(ge=0, le=1)]]
    """The strengths, rising."""
    num_steps: int = Field(ge=1, le=1000)
    """Steps of the sampler at strength 1."""


def distance(a: UInt8[Tensor, "n 3 h w"], b: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n"]:
    """Root of the mean squared difference of the pixels of each pair, in levels of 255."""
    return (a.float() - b.float()).square().flatten(1).mean(1).sqrt()


def main() -> str:
    this = study.start(Img2imgParams, "img2img", __file__)
    cases = this.lab.cases("unseen", this.params.num_images)
    half = len(cases) // 2
    prompts = cases.prompts[half:] + cases.prompts[:half]
    claims = cases.claims[half:] + cases.claims[:half]
    given = [{"image": pictures.of(image.permute(1, 2, 0).numpy())} for image in cases.images]
    num_steps = this.params.num_steps
    real = this.lab.features(cases.images)
    before: dict[str, Tensor] = {}

    def compute(strength: float) -> dict[str, Tensor]:
        images = this.lab.perform("img2img", given, prompts, {"strength": strength}, {"num_steps": num_steps})
        found = {"pixels": distance(images, cases.images), "features": (this.lab.features(images) - real).norm(dim=1)}
        checks = {"scene": this.lab.workers.check(images, claims)["scene"]}
        return {**found, **checks, "own_scene": this.lab.workers.check(images, cases.claims)["scene"]}

    def row(strength: float, measured: Mapping[str, Tensor]) -> Row:
        numbers = {name: interval(metrics.mean_interval(measured[name])) for name in DISTANCES}
        for name in DISTANCES:
            gain = measured[name] - before.get(name, torch.zeros(len(cases)))
            numbers[f"{name}_more"] = interval(metrics.mean_interval(gain))
        numbers |= {name: interval(metrics.proportion(measured[name].tolist())) for name in ("scene", "own_scene")}
        before.update(measured)
        return {"strength": strength, "count": len(cases), **numbers}

    work = {f"strength_{strength:g}": strength for strength in this.params.strengths}
    return this.run(work, compute, row, {"cases": cases.sha256})


if __name__ == "__main__":
    stage.run(main)
