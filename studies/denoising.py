"""PSNR of denoised images, beside a bilateral filter and total variation: `python -m studies.denoising`.

Noise is Gaussian, in levels of 255, and cut off at black and white, as an image of 8 bits does. Parameters of both
filters are those that do best on validation images at each level; the model is told neither its level nor a prompt.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from skimage import restoration
from torch import Tensor

from ldm import randomness
from ldm.core import stage
from ldm.core.config import Section
from ldm.evaluation import metrics
from ldm.tools.tasks import pictures
from studies import study
from studies.lab import Lab
from studies.rows import Row, interval
from studies.study import Study

OURS, ROUND_TRIP, NOISY, BILATERAL, TV = "model", "clean round trip", "noisy", "bilateral filter", "total variation"
METHODS = (OURS, ROUND_TRIP, NOISY, BILATERAL, TV)
Images = UInt8[Tensor, "n 3 h w"]
Filter = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w 3"]]


class DenoisingParams(Section):
    """Section `denoising`."""

    num_images: int = Field(ge=2, le=10**6)
    """Images of compositions that no training has seen."""
    num_tuning_images: int = Field(ge=1, le=10**6)
    """Validation images that the parameters of the filters are chosen on."""
    levels: list[float]
    """Standard deviations of the noise, in levels of 255."""
    tv_weights: list[float]
    """Weights of total variation to choose from, for values from 0 to 1."""
    bilateral_colours: list[float]
    """Deviations of the bilateral filter in colour, for values from 0 to 1."""
    bilateral_places: list[float]
    """Deviations of the bilateral filter in pixels."""


def noised(images: Images, level: float, seed: int) -> Images:
    """Images with noise, each a function of (seed, its number) alone."""
    keys = [randomness.generator(seed, "noised", i) for i in range(len(images))]
    noise = torch.stack([torch.randn(images[0].shape, generator=key) for key in keys])
    return (images + level * noise).round().clamp(0, 255).to(torch.uint8)


def psnr(images: Images, clean: Images) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio of each image in dB; at most 99."""
    error = (images.double() - clean.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 / 10**9.9))


def bilateral(image: UInt8[np.ndarray, "h w 3"], colour: float, place: float) -> UInt8[np.ndarray, "h w 3"]:
    """scikit-image's bilateral filter (Tomasi and Manduchi 1998)."""
    found = restoration.denoise_bilateral(image / 255, sigma_color=colour, sigma_spatial=place, channel_axis=-1)
    return _to_bytes(found)


def total_variation(image: UInt8[np.ndarray, "h w 3"], weight: float) -> UInt8[np.ndarray, "h w 3"]:
    """scikit-image's total variation (Chambolle 2004)."""
    return _to_bytes(restoration.denoise_tv_chambolle(image / 255, weight=weight, channel_axis=-1))


def _to_bytes(values: Any) -> UInt8[np.ndarray, "h w 3"]:
    return np.clip(np.round(np.asarray(values) * 255), 0, 255).astype(np.uint8)


def filters(params: DenoisingParams) -> dict[str, dict[str, Filter]]:
    """Every form of both filters, by name and by parameters."""
    places = product(params.bilateral_colours, params.bilateral_places)
    return {
        BILATERAL: {f"{c:g}, {p:g} px": partial(bilateral, colour=c, place=p) for c, p in places},
        TV: {f"{weight:g}": partial(total_variation, weight=weight) for weight in params.tv_weights},
    }


def filtered(lab: Lab, images: Images, function: Filter) -> Images:
    """All images through a filter."""
    return torch.from_numpy(np.stack(lab.workers.map(function, images)).transpose(0, 3, 1, 2).copy())


def denoised(lab: Lab, noisy: Images) -> Images:
    """By the model, without a prompt."""
    given = [{"image": pictures.of(image.permute(1, 2, 0).numpy())} for image in noisy]
    return lab.perform("denoise", given, [""] * len(noisy), {})


def run(this: Study[DenoisingParams]) -> str:
    """The study, once it has been started."""
    lab, seed = this.lab, this.lab.drawing.seed
    cases, tuning = (
        lab.cases(*of) for of in (("unseen", this.params.num_images), ("val", this.params.num_tuning_images))
    )
    choices = filters(this.params)
    chosen: dict[tuple[float, str], str] = {}
    ours: dict[float, Tensor] = {}

    def best(level: float, method: str) -> str:
        noisy = noised(tuning.images, level, seed + 1)
        means = {
            name: float(psnr(filtered(lab, noisy, function), tuning.images).mean())
            for name, function in choices[method].items()
        }
        return max(means, key=means.__getitem__)

    def compute(work: tuple[float, str]) -> dict[str, Tensor]:
        level, method = work
        noisy = noised(cases.images, level, seed)
        match method:
            case "model":
                images = denoised(lab, noisy)
            case "clean round trip":
                generator = lab.pipeline.generator
                images = lab.in_batches(
                    lambda rows: generator.decode(generator.encode(cases.images[rows.start : rows.stop])).cpu(),
                    len(cases),
                )
            case "noisy":
                images = noisy
            case _:
                chosen[work] = best(level, method)
                images = filtered(lab, noisy, choices[method][chosen[work]])
        number = list(choices[method]).index(chosen[work]) if work in chosen else -1
        return {"psnr": psnr(images, cases.images), "choice": torch.tensor([number])}

    def row(work: tuple[float, str], measured: Mapping[str, Tensor]) -> Row:
        level, method = work
        if method == OURS:
            ours[level] = measured["psnr"]
        number = int(measured["choice"])
        facts = {"level": level, "method": method, "parameters": list(choices[method])[number] if number >= 0 else ""}
        numbers = {"psnr": interval(metrics.mean_interval(measured["psnr"]))}
        numbers["model_better_by"] = interval(metrics.mean_interval(ours[level] - measured["psnr"]))
        return {**facts, "count": len(cases), **numbers}

    work = {
        f"{level:g}_{method.replace(' ', '_')}": (level, method) for level in this.params.levels for method in METHODS
    }
    return this.run(work, compute, row, {"cases": cases.sha256, "tuning": tuning.sha256})


def main() -> str:
    return run(study.start(DenoisingParams, "denoising", __file__))


if __name__ == "__main__":
    stage.run(main)
