"""Whether samples are copies of training images, by how near their nearest ones are.

A distance alone says little: every image of a corpus is near others, and a blurred one is near all. So the distance to
the nearest training image is divided by the mean distance to the nearest few, as Carlini et al. 2023 do (section 5),
and what is near is said by real images that no training saw: samples should be no nearer than these.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from ldm.core import images
from ldm.core.errors import ConfigError, RejectedError
from ldm.evaluation import metrics
from ldm.evaluation.metrics import Estimate
from ldm.evaluation.real_images import Origin, RealImages, scattered
from ldm.sampling.samples import SETS, Samples
from ldm.tools.model.params import MemorisationParams

if TYPE_CHECKING:
    from PIL.Image import Image

_NUM_AT_ONCE = 256
_EQUAL = 1e-6
"""Distances that are no larger are those of equal images: they are rounded."""
_NUM_COLUMNS = 8
"""Columns of the picture of pairs; even, so that both images of a pair are in one row."""


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to each of some images, the nearest one first."""

    distances: Float[Tensor, "n k"]
    numbers: Int64[Tensor, "n k"]
    """Places of the training images in the order in which they were searched."""

    @property
    def closeness(self) -> Float[Tensor, "n"]:
        """The distance to the nearest one over the mean distance to all k, in 0..1; 0 = a copy, 1 = none of them stands
        out. If training has k images that are nearly equal, a near copy of these does not stand out."""
        nearest, mean = self.distances[:, 0], self.distances.mean(1)
        return torch.where(nearest == 0, torch.zeros_like(nearest), nearest / mean)


def nearest(
    features: Float[Tensor, "n f"], training: Iterable[Float[Tensor, "b f"]], num_neighbours: int
) -> Neighbours:
    """The nearest training images by Euclidean distance; `training` comes in batches, and none of them is kept. Fewer
    than `num_neighbours` if there are fewer."""
    distances = features.new_empty(len(features), 0)
    numbers = torch.empty(len(features), 0, dtype=torch.int64)
    start = 0
    for batch in training:
        places = torch.arange(start, start + len(batch)).expand(len(features), -1)
        distances = torch.cat([distances, torch.cdist(features, batch)], 1)
        distances, order = distances.topk(min(num_neighbours, distances.shape[1]), largest=False)
        numbers = torch.cat([numbers, places], 1).gather(1, order)
        start += len(batch)
    assert start > 1, f"neighbours among {start} images"
    return Neighbours(distances, numbers)


@dataclass(frozen=True)
class Compared:
    """Images, each with its nearest training images."""

    images: Sequence[bytes]
    titles: Sequence[str]
    neighbours: Neighbours

    @property
    def closest(self) -> list[int]:
        """Their numbers, the one closest to training first."""
        return self.neighbours.closeness.argsort(stable=True, dim=0).tolist()


@dataclass(frozen=True)
class Memorisation:
    """How close samples come to the training images, beside real images that no training saw."""

    samples: Compared
    real: Compared
    training: Sequence[Origin]
    """The training images that were searched, in that order; no two of them are equal."""
    params: MemorisationParams

    @property
    def threshold(self) -> float:
        """The closeness below which the `quantile` of the real images lies. Those that training has, too, do not say
        what is near by chance, and are left out."""
        closeness = self.real.neighbours.closeness
        new = closeness[self.real.neighbours.distances[:, 0] > _EQUAL]
        return float((new if len(new) else closeness).quantile(self.params.quantile, interpolation="lower"))

    @property
    def share(self) -> Estimate:
        """Share of samples that are closer than the threshold; about `quantile` if nothing is copied."""
        return metrics.proportion((self.samples.neighbours.closeness < self.threshold).tolist())

    @property
    def closer_than_real(self) -> float:
        """Probability that a sample is closer than a real image: 0.5 = they are alike (Meehan et al. 2020, section 3:
        the statistic of Mann and Whitney)."""
        samples, real = self.samples.neighbours.closeness[:, None], self.real.neighbours.closeness[None]
        return float(((samples < real).double() + (samples == real).double() / 2).mean())

    def numbers(self) -> dict[str, float | int]:
        """All numbers for `metrics.json`, in at most six digits."""
        share = self.share
        numbers = {
            "memorised_share": share.value,
            "memorised_share_low": share.low,
            "memorised_share_high": share.high,
            "closer_than_real": self.closer_than_real,
            "closeness_threshold": self.threshold,
            "closeness_samples": float(self.samples.neighbours.closeness.median()),
            "closeness_real": float(self.real.neighbours.closeness.median()),
        }
        counts = {"samples": len(self.samples.images), "real": len(self.real.images), "training": len(self.training)}
        short = {name: float(f"{value:.6g}") for name, value in numbers.items()}
        return short | {f"num_{name}": count for name, count in counts.items()}

    def check(self, where: str) -> None:
        """RejectedError: more samples are close to a training image than the params allow, and not by chance."""
        share, limit = self.share, self.params.max_share
        if share.low > limit:
            interval = f"{100 * share.value:.1f} %, {100 * share.low:.1f} to {100 * share.high:.1f}"
            found = f"{interval} of {share.count} samples are closer to a training image than {self._most} of real ones"
            fix = f"look at {where}; train for fewer steps, on more or on other images, or raise model.memorisation"
            raise RejectedError("model.memorisation", found, f"at most {100 * limit:g} %", f"{fix}.max_share")

    @property
    def _most(self) -> str:
        return f"{100 * (1 - self.params.quantile):g} %"

    def picture(self, real: RealImages) -> "Image":
        """The samples closest to training, each beside its nearest training image, then as many real images."""
        cells: list[bytes] = []
        captions: list[str] = []
        for compared in (self.samples, self.real):
            for number in compared.closest[: self.params.num_pictures]:
                origin = self.training[int(compared.neighbours.numbers[number, 0])]
                cells += [compared.images[number], real.png(origin)]
                captions += [f"{compared.titles[number]}", f"training, {compared.neighbours.closeness[number]:.2f}"]
        return images.grid(images.planes(cells), _NUM_COLUMNS, captions)


def measure(samples: Mapping[str, Samples], real: RealImages, params: MemorisationParams) -> Memorisation:
    """Search the training images for those nearest to samples, and for those nearest to real images of other splits.

    The real images are those of the prompts, as far as no training saw them, then others of validation. Of training
    images that are equal, as those of a part that a mixture repeats, one is searched: beside its repetitions, what is
    near it would not stand out. ConfigError: there are fewer than two of either kind.
    """
    chosen = [(name, i) for name in SETS if name in samples for i in range(min(len(samples[name]), params.num_images))]
    drawn = _Images(
        [samples[name].png(i) for name, i in chosen],
        [f"{name.replace('_', ' ')}: {samples[name].prompts[i].prompt}" for name, i in chosen],
    )
    origins = _unseen(samples, real, len(SETS) * params.num_images)
    others = _Images([real.png(origin) for origin in origins], [f"real, {split}" for split, _ in origins])
    training = list(islice(_distinct(real, scattered(real, "train")), params.num_training_images))
    if min(len(origins), len(training)) < 2:
        found = f"{len(training)} training images, and {len(origins)} that no training saw"
        raise ConfigError("model.memorisation", found, "at least two of each", "prepare more images")
    queries = torch.cat(list(_shrunk(drawn.pngs + others.pngs, params.size_px)))
    found = nearest(queries, _shrunk(map(real.png, training), params.size_px), params.num_neighbours)
    return Memorisation(drawn.compared(found, 0), others.compared(found, len(chosen)), training, params)


@dataclass(frozen=True)
class _Images:
    pngs: list[bytes]
    titles: list[str]

    def compared(self, found: Neighbours, start: int) -> Compared:
        rows = slice(start, start + len(self.pngs))
        return Compared(self.pngs, self.titles, Neighbours(found.distances[rows], found.numbers[rows]))


def _unseen(samples: Mapping[str, Samples], real: RealImages, count: int) -> list[Origin]:
    prompts = chain.from_iterable(samples[name].prompts for name in SETS if name in samples)
    own = dict.fromkeys(real.origin(prompt) for prompt in prompts if prompt.split != "train")
    others = (origin for origin in scattered(real, "val") if origin not in own)
    return list(islice(chain(own, others), count))


def _distinct(real: RealImages, origins: Iterable[Origin]) -> Iterator[Origin]:
    """Those whose encoded bytes no earlier one has."""
    seen: set[bytes] = set()
    for origin in origins:
        digest = hashlib.sha256(real.png(origin)).digest()
        if digest not in seen:
            seen.add(digest)
            yield origin


def _shrunk(pngs: Iterable[bytes], size_px: int) -> Iterator[Float[Tensor, "b f"]]:
    """Mean colours of size_px x size_px fields of images, in 0..1, batch by batch; black and white have distance 1."""
    rest = iter(pngs)
    while arrays := [images.decode(png) for png in islice(rest, _NUM_AT_ONCE)]:
        planes = [torch.from_numpy(array.copy()).permute(2, 0, 1)[None].double() / 255 for array in arrays]
        fields = torch.cat([functional.adaptive_avg_pool2d(plane, size_px) for plane in planes]).flatten(1)
        yield fields / fields.shape[1] ** 0.5
