"""Whole scenes after an object was cut out and drawn anew, and the seam around it: `python -m studies.inpainting`.

The mask covers one object of a scene; the prompt is the caption of the whole scene. The oracle then reads the whole
picture, so the hole counts as right only if it holds what the prompt says and nothing around it is disturbed. Controls
are the real images, and the holes filled with the background.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor

from ldm.core import stage
from ldm.core.config import Section
from ldm.evaluation import metrics
from ldm.tools.tasks import pictures
from studies import study
from studies.lab import CHECKS, Cases
from studies.rows import Row, interval

REAL, EMPTIED = "real images", "holes left empty"


class InpaintingParams(Section):
    """Section `inpainting`."""

    split: Literal["val", "unseen"]
    """Split of the scenes."""
    num_cases: int = Field(ge=3, le=10**6)
    """Scenes, in each of which one object is masked."""
    margin_px: int = Field(ge=0, le=64)
    """Pixels of the mask beyond the object on each side."""
    num_resamplings: list[int]
    """Values of r: how often each stretch of the way down is taken."""


def masks(scenes: Sequence[Mapping[str, Any]], size_px: int, margin_px: int) -> Bool[Tensor, "n 1 h w"]:
    """The square around an object of each scene: the first one and the last one in turn."""
    found = torch.zeros(len(scenes), 1, size_px, size_px, dtype=torch.bool)
    for i, scene in enumerate(scenes):
        chosen = scene["objects"][-(i % 2)]
        half = chosen["radius"] * 1.08 * size_px + margin_px  # a star reaches 1.08 radii
        (top, bottom), (left, right) = (
            (max(round(chosen[axis] * size_px - half), 0), round(chosen[axis] * size_px + half)) for axis in ("y", "x")
        )
        found[i, :, top:bottom, left:right] = True
    return found


def seam(images: UInt8[Tensor, "n 3 h w"], holes: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n"]:
    """Mean absolute difference between pixels on both sides of the border of a hole, in levels of 255."""
    total, count = torch.zeros(len(images)), torch.zeros(len(images))
    for axis in (2, 3):
        steps = images.float().diff(dim=axis).abs().mean(1, keepdim=True)
        crosses = holes.float().diff(dim=axis).abs()
        total += (steps * crosses).flatten(1).sum(1)
        count += crosses.flatten(1).sum(1)
    return total / count


def emptied(cases: Cases, holes: Bool[Tensor, "n 1 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """The images with their backgrounds in the holes."""
    colours = torch.tensor([scene["background_rgb"] for scene in cases.scenes], dtype=torch.uint8)
    return torch.where(holes, colours[:, :, None, None], cases.images)


def main() -> str:
    this = study.start(InpaintingParams, "inpainting", __file__)
    params = this.params
    cases = this.lab.cases(params.split, params.num_cases)
    holes = masks(cases.scenes, cases.images.shape[-1], params.margin_px)
    given = [
        {"image": pictures.of(image.permute(1, 2, 0).numpy()), "mask": pictures.of(_white(hole))}
        for image, hole in zip(cases.images, holes, strict=True)
    ]
    fixed = {REAL: cases.images, EMPTIED: emptied(cases, holes)}

    def compute(work: str | int) -> dict[str, Tensor]:
        if isinstance(work, str):
            images = fixed[work]
        else:
            images = this.lab.perform("inpaint", given, cases.prompts, {"num_resamplings": work})
        return {"seam": seam(images, holes), **this.lab.workers.check(images, cases.claims)}

    def row(work: str | int, measured: Mapping[str, Tensor]) -> Row:
        numbers = {name: interval(metrics.proportion(measured[name].tolist())) for name in CHECKS}
        numbers["seam"] = interval(metrics.mean_interval(measured["seam"]))
        return {"holes": work if isinstance(work, str) else f"drawn, r = {work}", "count": len(cases), **numbers}

    work: dict[str, str | int] = {REAL.replace(" ", "_"): REAL, EMPTIED.replace(" ", "_"): EMPTIED}
    work |= {f"r{r}": r for r in params.num_resamplings}
    return this.run(work, compute, row, {"cases": cases.sha256})


def _white(hole: Bool[Tensor, "1 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return (hole.permute(1, 2, 0).expand(-1, -1, 3).numpy() * 255).astype(np.uint8)


if __name__ == "__main__":
    stage.run(main)
