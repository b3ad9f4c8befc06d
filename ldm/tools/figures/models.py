"""Figures of the trained artefacts: a real image in noise, a sample as it is made, more and fewer steps, and where
images lie in latent space."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm import randomness
from ldm.autoencoder.model.network import to_image, to_signal
from ldm.core import config
from ldm.core.errors import ConfigError
from ldm.core.params import PathsParams
from ldm.core.shards import Shards
from ldm.denoiser.model.diffusion import Denoiser, Schedule, add_noise, denoiser
from ldm.sampling import grids
from ldm.sampling.params import DrawingParams
from ldm.text.model.captions import Captions
from ldm.tools.figures import style
from ldm.tools.figures.recording import recorded
from ldm.tools.pipeline import Pipeline

Pictures = UInt8[np.ndarray, "n h w 3"]
NOISE_TIMES = (0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
STEP_COUNTS = (5, 10, 20, 50, 1000)
_MOST_COLUMNS = 13
_NUM_CANDIDATES = 16
_LEAST_IMAGES = 5
"""Latents of fewer have no four axes."""


@dataclass(frozen=True)
class Trained:
    """The trained artefacts, and validation images with their captions."""

    pipeline: Pipeline
    images: Shards
    captions: list[str]

    @classmethod
    def of(cls, pipeline: Pipeline, root: Path) -> Self:
        """A pipeline and the images of the repository at `root`, from which it was loaded. IntegrityError: they are
        missing or corrupt."""
        paths = config.read(PathsParams, "paths", root / config.PATHS)
        images, captions = Shards(root / paths.images / "val"), Captions(root / paths.captions / "val")
        captions.check_keys(images)
        return cls(pipeline, images, [texts[0] for texts in captions.texts])

    @property
    def example(self) -> int:
        """Number of the image with the longest of the first captions, which shows most."""
        return max(range(min(_NUM_CANDIDATES, len(self.captions))), key=lambda number: len(self.captions[number]))

    def pictures(self, num: int) -> UInt8[Tensor, "b 3 h w"]:
        """The first images of the size that most have, or all if there are fewer."""
        buckets = self.images.buckets
        most = int(buckets.counts.argmax())
        return self.images.images(buckets.samples(most, np.arange(min(num, int(buckets.counts[most])))).tolist())

    def decode(self, z: Float[Tensor, "b c h w"]) -> Pictures:
        """Images of latents on the scale of the diffusion model."""
        return _arrays(self.pipeline.generator.decode(z))

    def denoiser(self, prompts: Sequence[str], drawing: DrawingParams) -> Denoiser:
        """The guided denoiser of prompts."""
        return self.pipeline.generator.guided(self.pipeline.embed(prompts), drawing)


def _arrays(images: UInt8[Tensor, "b 3 h w"]) -> Pictures:
    return images.cpu().permute(0, 2, 3, 1).contiguous().numpy()


# A real image in noise.


@dataclass(frozen=True)
class NoiseLevels:
    """A real image at `times`: its pixels with noise; its latent with noise, decoded; and the clean latent that the
    denoiser guesses from it, decoded, with and without the caption."""

    times: list[float]
    alpha_sigma: list[tuple[float, float]]
    caption: str
    pixels: Pictures
    latents: Pictures
    told: Pictures
    untold: Pictures


@torch.no_grad()
def noise_levels(trained: Trained, number: int = 0, times: Sequence[float] = NOISE_TIMES) -> NoiseLevels:
    """Of validation image `number`, with the same noise at every time. At time 0 nothing is left to guess."""
    generator, caption = trained.pipeline.generator, trained.captions[number]
    picture = trained.images.images([number]).to(generator.device)
    z0 = generator.encode(picture)
    z = _noised(generator.schedule, z0, times, "figure latents")
    conditions = [trained.pipeline.embed([caption]).to(generator.device), generator.null_condition]
    denoisers = [denoiser(generator.unet, generator.schedule, generator.prediction, each) for each in conditions]
    t = torch.tensor(times, device=generator.device)
    told, untold = (
        torch.cat([guess(z[i : i + 1], t[i : i + 1]) if t[i] > 0 else z0 for i in range(len(t))]) for guess in denoisers
    )
    states = [grids.State(generator.schedule.name, time) for time in times]
    return NoiseLevels(
        times=list(times),
        alpha_sigma=[(state.alpha, state.sigma) for state in states],
        caption=caption,
        pixels=_arrays(to_image(_noised(generator.schedule, to_signal(picture), times, "figure pixels"))),
        latents=trained.decode(_of_unit_size(z, states)),
        told=trained.decode(told),
        untold=trained.decode(untold),
    )


def _noised(schedule: Schedule, clean: Tensor, times: Sequence[float], purpose: str) -> Tensor:
    """One image or latent at several times, with the same noise."""
    noise = torch.randn(clean.shape, generator=randomness.generator(0, purpose)).to(clean)
    t = torch.tensor(times, dtype=torch.float64, device=clean.device)
    return add_noise(schedule, clean.expand(len(t), -1, -1, -1), noise.expand(len(t), -1, -1, -1), t)


def _of_unit_size(z: Tensor, states: Sequence[grids.State]) -> Tensor:
    """Noisy latents over the deviation that they have where clean ones have 1, as the decoder expects them."""
    sizes = torch.tensor([math.hypot(state.alpha, state.sigma) for state in states])
    return z / sizes.to(z).reshape(-1, 1, 1, 1)


def draw_noise_levels(data: NoiseLevels) -> Any:
    """A column per time."""
    titles = [
        f"t = {time:g}\n$\\alpha$ {alpha:.2f}  $\\sigma$ {sigma:.2f}"
        for time, (alpha, sigma) in zip(data.times, data.alpha_sigma, strict=True)
    ]
    rows = {
        "pixels": data.pixels,
        "latent\n$z_t$": data.latents,
        "$\\hat{z}_0$, no\ncaption": data.untold,
        "$\\hat{z}_0$, with\ncaption": data.told,
    }
    return style.strips(rows, titles, f'caption: "{data.caption}"')


# A sample as it is made.


@dataclass(frozen=True)
class Steps:
    """Every latent at which the sampler asked the denoiser, and what it answered, decoded; and the sample."""

    times: list[float]
    prompt: str
    latents: Pictures
    guesses: Pictures
    sample: Pictures


@torch.no_grad()
def steps(trained: Trained, prompt: str | None = None) -> Steps:
    """One sample with the settings of params.yaml; prompt: that of the example by default."""
    pipeline = trained.pipeline
    text = trained.captions[trained.example] if prompt is None else prompt
    denoise, calls = recorded(trained.denoiser([text], pipeline.drawing))
    final = pipeline.generator.latents(denoise, [0], pipeline.drawing)
    states = [grids.State(pipeline.generator.schedule.name, time) for time, _, _ in calls]
    return Steps(
        times=[time for time, _, _ in calls],
        prompt=text,
        latents=trained.decode(_of_unit_size(torch.cat([z for _, z, _ in calls]), states)),
        guesses=trained.decode(torch.cat([z0_hat for _, _, z0_hat in calls])),
        sample=trained.decode(final),
    )


def draw_steps(data: Steps) -> Any:
    """A column per call of the denoiser, or as many as fit."""
    places = np.linspace(0, len(data.times) - 1, min(len(data.times), _MOST_COLUMNS)).round().astype(int)
    titles = [f"t = {data.times[i]:.2f}" for i in places]
    rows = {"$z_t$": data.latents[places], "$\\hat{z}_0$": data.guesses[places]}
    return style.strips(rows, titles, f'prompt: "{data.prompt}"')


# More and fewer steps.


@dataclass(frozen=True)
class StepCounts:
    """Samples of the same prompts from the same noise, by sampler and number of steps."""

    prompts: list[str]
    samples: dict[str, dict[int, Pictures]]


def step_counts(trained: Trained, counts: Sequence[int] = STEP_COUNTS, num_prompts: int = 6) -> StepCounts:
    """By a sampler that follows the flow and by DDPM, which adds noise in every step."""
    prompts = trained.captions[:num_prompts]
    compared = {"dpm_solver_pp_2m": {"kind": "dpm_solver_pp_2m"}, "ddpm": {"kind": "ddpm", "variance": 0}}
    return StepCounts(
        prompts,
        {
            name: {n: _arrays(trained.pipeline(prompts, num_steps=n, sampler=sampler)) for n in counts}
            for name, sampler in compared.items()
        },
    )


def draw_step_counts(data: StepCounts) -> Any:
    """A row per number of steps; the samplers side by side."""
    counts = list(next(iter(data.samples.values())))
    rows = {f"{n} steps": np.concatenate([samples[n] for samples in data.samples.values()]) for n in counts}
    return style.strips(rows, list(data.samples), "", num_groups=len(data.samples))


# Latent space.


@dataclass(frozen=True)
class LatentMap:
    """Images and their places along the first four principal axes of their latents [n, 4], and the share of the
    variance that each axis has."""

    pictures: Pictures
    places: npt.NDArray[np.float64]
    shares: list[float]


@torch.no_grad()
def latent_map(trained: Trained, num: int = 400) -> LatentMap:
    """Principal components of the latents of validation images. ConfigError: fewer than 5 of them have one size."""
    pictures = trained.pictures(num)
    if len(pictures) < _LEAST_IMAGES:
        found, fix = f"{len(pictures)} validation images of one size", "leave it out by --only, or validate with more"
        raise ConfigError("latent_map", found, f"{_LEAST_IMAGES} or more", fix)
    places, shares = principal(trained.pipeline.generator.encode(pictures).flatten(1).double().cpu())
    return LatentMap(_arrays(pictures), places, shares)


def principal(x: Float[Tensor, "n d"], num: int = 4) -> tuple[npt.NDArray[np.float64], list[float]]:
    """Coordinates [n, num] along the principal axes, and the share of the variance of each."""
    centred = x - x.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    return (u[:, :num] * s[:num]).numpy(), (s[:num].square() / s.square().sum()).tolist()


def draw_latent_map(data: LatentMap) -> Any:
    """Two panels, of axes 1 and 2 and of axes 3 and 4: every image a point, and some of them shown."""
    figure, ((left, right),) = style.panels(1, 2, 4.1)
    for panel, (x, y) in ((left, (0, 1)), (right, (2, 3))):
        places = data.places[:, [x, y]] / np.abs(data.places[:, [x, y]]).max(0)
        panel.scatter(*places.T, s=4, color=style.GREY, linewidths=0)
        style.thumbnails(panel, places, data.pictures)
        style.bare(panel, 1.1)
        panel.set_title(f"axes {x + 1} and {y + 1}: {data.shares[x]:.0%} and {data.shares[y]:.0%} of the variance")
    return figure
