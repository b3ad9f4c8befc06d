"""The trained model, with what its images are measured by: prompts whose claims an oracle checks, the real images of
these prompts, and features."""

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ldm import randomness
from ldm.core import config
from ldm.core.params import PathsParams
from ldm.core.shards import Shards
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.network import Network
from ldm.oracles import shapes, shapes_extractor
from ldm.sampling.params import DrawingParams
from ldm.tools.pipeline import Pipeline
from ldm.tools.tasks.draw import Work
from ldm.tools.tasks.params import TaskParams
from ldm.tools.tasks.pictures import Picture

T = TypeVar("T")

BATCH_SIZES = {"cpu": 64, "cuda": 1024}
"""Images at a time by kind of device; it changes the last bits of an image only."""
CHECKS = ("scene", "scene_strict")
"""What is asked of the oracle: the whole scene, and that with strict outlines."""


@dataclass(frozen=True)
class Cases:
    """Samples of the corpus: the first caption of each, what it claims, and the image."""

    prompts: list[str]
    claims: list[dict[str, Any]]
    scenes: list[dict[str, Any]]
    """What was drawn: objects with their places and sizes, and the background."""
    images: UInt8[Tensor, "n 3 h w"]
    sha256: str
    """Hash of the split that they are from."""

    def __len__(self) -> int:
        return len(self.prompts)


class Workers:
    """As many processes as there are cores, for what no network computes: the oracle takes about 10 ms per image."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)), initializer=_ignore_stops)
        self._pool.submit(os.getpid).result()  # all processes start now, before a GPU is in use, which no fork survives

    def map(self, function: Callable[..., T], images: UInt8[Tensor, "n 3 h w"], *others: Sequence[Any]) -> list[T]:
        """What a function returns for each image, as an array [h w 3], and the other arguments beside it."""
        arrays = [array.transpose(1, 2, 0) for array in images.numpy()]
        return list(self._pool.map(function, arrays, *others, chunksize=8))

    def check(self, images: UInt8[Tensor, "n 3 h w"], claims: Sequence[Any]) -> dict[str, Bool[Tensor, "n"]]:
        """Whether each image shows what is claimed of it, by name of the check: the oracle's answers."""
        answers = self.map(shapes.check, images, [[claim] for claim in claims])
        return {name: torch.tensor([answer[name] for (answer,) in answers]) for name in CHECKS}


def _ignore_stops() -> None:
    """Ctrl-C reaches all processes of a terminal; the main one finishes its unit of work first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class Lab:
    """The default model and its instruments."""

    pipeline: Pipeline
    workers: Workers
    extractor: shapes_extractor.Extractor
    paths: PathsParams

    @classmethod
    def load(cls, workers: Workers, device: torch.device) -> Self:
        """From the repository in the working folder. Errors are those of `Pipeline.load`."""
        paths = config.read(PathsParams, "paths")
        return cls(Pipeline.load(device=device), workers, shapes_extractor.load().to(device), paths)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.pipeline.generator.device

    @property
    def drawing(self) -> DrawingParams:
        """The drawing of params.yaml."""
        return self.pipeline.drawing

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of all that the numbers of a study are made from, besides its cases."""
        return {**self.pipeline.generator.inputs, "features": shapes_extractor.WEIGHTS_SHA256}

    def cases(self, split: str, count: int) -> Cases:
        """`count` samples of a split (or all there are), scattered over it."""
        captions, pictures = Shards(Path(self.paths.captions) / split), Shards(Path(self.paths.images) / split)
        count = min(count, len(captions))
        places = randomness.order(np.arange(count, dtype=np.int64), len(captions), randomness.key(0, "studies", split))
        chosen: list[int] = places.tolist()
        records = [json.loads(captions[place]["json"]) for place in chosen]
        prompts, claims = ([record[name][0] for record in records] for name in ("captions", "claims"))
        scenes = [json.loads(pictures[place]["json"])["scene"] for place in chosen]
        return Cases(prompts, claims, scenes, pictures.images(chosen), f"{captions.sha256} {pictures.sha256}")

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Conditions as `ldm generate` makes them of prompts that no stage has embedded."""
        return Condition(**self.pipeline.encode(prompts))

    def draw(
        self, prompts: Sequence[str], drawing: DrawingParams, unet: Network | None = None
    ) -> UInt8[Tensor, "n 3 h w"]:
        """One image per prompt; image i starts from the noise of (seed, i). unet: another than the default's."""
        generator = self.pipeline.generator
        generator = generator if unet is None else replace(generator, unet=unet)

        def batch(rows: range) -> Tensor:
            return generator(self.condition(prompts[rows.start : rows.stop]), rows, drawing)

        return self.in_batches(batch, len(prompts))

    def perform(
        self,
        name: str,
        given: Sequence[Mapping[str, Picture]],
        prompts: Sequence[str],
        settings: Mapping[str, Any],
        changes: Mapping[str, Any] = {},
    ) -> UInt8[Tensor, "n 3 h w"]:
        """A task of params.yaml on pictures with prompts; image i has the noises of (seed, i). settings, changes: what
        differs from the task's settings, and from its drawing."""
        task: TaskParams = getattr(self.pipeline.tasks, name).changed(settings)
        work, drawing = Work(name, task, given), task.changes(self.drawing).changed(changes)

        def batch(rows: range) -> Tensor:
            part = prompts[rows.start : rows.stop]
            return work.part(rows).draw(self.pipeline.generator, part, rows, drawing)

        return self.in_batches(batch, len(prompts))

    def features(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
        """Features of images in the space of the corpus (`ldm.oracles.shapes_extractor`)."""

        def batch(rows: range) -> Tensor:
            return self.extractor(images[rows.start : rows.stop].to(self.device)).float().cpu()

        return self.in_batches(batch, len(images))

    @torch.no_grad()
    def in_batches(self, compute: Callable[[range], Tensor], count: int) -> Tensor:
        """The rows that `compute` makes of every batch of row numbers, together."""
        size = BATCH_SIZES[self.device.type]
        return torch.cat([compute(range(start, min(start + size, count))) for start in range(0, count, size)])
