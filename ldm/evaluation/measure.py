"""Measuring images: samples, the real images of their prompts, the autoencoder's round trips of those, and a reference.

What is measured of an image depends on that image alone, so the work is cut into units that any process may do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ldm import randomness
from ldm.autoencoder.model import networks
from ldm.autoencoder.model.network import Autoencoder, to_image, to_signal
from ldm.compute import attention
from ldm.core import images
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.shards import Shards
from ldm.evaluation import metrics, spaces
from ldm.evaluation.params import EvaluateParams, RetrievalParams
from ldm.evaluation.spaces import FeatureSpace
from ldm.oracles import kinds
from ldm.oracles.oracle import Oracle
from ldm.sampling.samples import SEEN, SETS, Prompt, Samples, shown
from ldm.text.model import clip as text_model
from ldm.text.model.clip import Clip

if TYPE_CHECKING:
    from PIL.Image import Image

Measured = Mapping[str, Mapping[str, Tensor]]
"""Tensors of `Instruments.measure` by subject."""
REAL, DECODED = "real_", "decoded_"
"""Before the name of a set: the real images of its prompts, and their round trips through the autoencoder."""
REFERENCE, GALLERY, REAL_SWEEP = "reference", "gallery", "real_sweep"
_NUM_COLUMNS = 8
"""Of the picture of pairs: even, so that a pair stays together."""


def features_in(space: str) -> str:
    """Name of the tensor that holds the features of a space."""
    return f"features_{space}"


@dataclass(frozen=True)
class Subject:
    """Images of one kind. With prompts, image i is measured against prompt i; `decoded` ones pass through the
    autoencoder first."""

    name: str
    count: int
    png: Callable[[int], bytes]
    prompts: list[Prompt] | None
    decoded: bool


class RealImages:
    """The image shards of all splits, found by key."""

    def __init__(self, directory: Path, splits: Sequence[str]) -> None:
        self._splits = {split: Shards(directory / split) for split in splits}
        self._numbers = {split: {key: i for i, key in enumerate(s.keys)} for split, s in self._splits.items()}

    @property
    def sha256(self) -> dict[str, str]:
        """Hash of the index of every split."""
        return {f"images_{split}": shards.sha256 for split, shards in self._splits.items()}

    def keys(self, split: str) -> list[str]:
        """Keys of a split in their order."""
        return self._splits[split].keys

    def png(self, split: str, key: str) -> bytes:
        """The image of one sample. IntegrityError: there is none."""
        number = self._numbers[split].get(key)
        if number is None:
            where, fix = str(self._splits[split].directory), "run `dvc repro sample`"
            raise IntegrityError(where, f"no sample {key}", "the images that the prompts come from", fix)
        return self._splits[split][number]["png"]


def subjects(samples: Mapping[str, Samples], real: RealImages, params: EvaluateParams) -> list[Subject]:
    """All that is measured; a gallery to search in only where retrieval decides what is right.

    ConfigError: fewer than two training images have given no prompt.
    """
    chosen = [Subject(name, len(part), part.png, part.prompts, decoded=False) for name, part in samples.items()]
    for name in [name for name in SETS if name in samples]:
        prompts = samples[name].prompts
        chosen.append(_real(REAL + name, _origins(prompts), real, prompts))
        chosen.append(_real(DECODED + name, _origins(prompts), real, prompts, decoded=True))
    sweep = next((part.prompts for name, part in samples.items() if name not in SETS), None)
    if sweep is not None:
        chosen.append(_real(REAL_SWEEP, _origins(sweep), real, sweep))
    prompted = {(prompt.split, prompt.key) for part in samples.values() for prompt in part.prompts}
    chosen.append(_real(REFERENCE, _reference(real, prompted, params.num_reference_images), real))
    if isinstance(params.accuracy, RetrievalParams):
        chosen.append(_real(GALLERY, _gallery(samples, real, params.accuracy), real))
    return chosen


def _origins(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.split, prompt.key) for prompt in prompts]


def _real(
    name: str,
    origins: Sequence[tuple[str, str]],
    real: RealImages,
    prompts: list[Prompt] | None = None,
    decoded: bool = False,
) -> Subject:
    return Subject(name, len(origins), lambda i: real.png(*origins[i]), prompts, decoded)


def _reference(real: RealImages, prompted: set[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    free = [origin for origin in _scattered(real, "train") if origin not in prompted][:count]
    if len(free) < 2:
        found = f"{len(free)} of {len(real.keys('train'))} training images have given no prompt"
        fix = "lower sample.num_prompts_seen, or take sample.seen_split: val"
        raise ConfigError("params.yaml: evaluate.num_reference_images", found, "at least two", fix)
    return free


def _gallery(samples: Mapping[str, Samples], real: RealImages, params: RetrievalParams) -> list[tuple[str, str]]:
    """(split, key) of the images to search among: those of the searched prompts, in their order, then others of
    training and validation."""
    own = _origins(samples[SEEN].prompts[: params.num_prompts])
    others = [*_scattered(real, "train"), *_scattered(real, "val")]
    return list(dict.fromkeys([*own, *others]))[: max(params.num_images, len(own))]


def matching(
    samples: Mapping[str, Samples],
    real: RealImages,
    captions: Mapping[str, Sequence[Sequence[str]]],
    params: RetrievalParams,
) -> Bool[Tensor, "prompts gallery"]:
    """Whether an image of the gallery has a searched prompt among its captions; `captions` are those of train and val,
    in the order of their images."""
    by_key = {split: dict(zip(real.keys(split), texts, strict=True)) for split, texts in captions.items()}
    gallery = [set(by_key[split][key]) for split, key in _gallery(samples, real, params)]
    prompts = [prompt.prompt for prompt in samples[SEEN].prompts[: params.num_prompts]]
    return torch.tensor([[prompt in texts for texts in gallery] for prompt in prompts])


def _scattered(real: RealImages, split: str) -> list[tuple[str, str]]:
    """Samples of a split in an order whose first few represent all, however the corpus is sorted."""
    keys = real.keys(split)
    order = randomness.order(np.arange(len(keys), dtype=np.int64), len(keys), randomness.key(0, "scattered", split))
    return [(split, keys[i]) for i in order.tolist()]


@dataclass(frozen=True)
class Instruments:
    """What images are measured with."""

    spaces: Sequence[FeatureSpace]
    """Where images are compared, the CLIP's own space among them."""
    oracle: Oracle | None
    """What checks claims, for a corpus that has one."""
    clip: Clip
    autoencoder: Autoencoder
    device: torch.device
    sha256: Mapping[str, str]
    """Hash of the CLIP and of the autoencoder."""

    @classmethod
    def load(cls, params: EvaluateParams, clip: Path, autoencoder: Path, device: torch.device) -> Self:
        """Read the folders of the two networks, and build the spaces and the oracle of the params. IntegrityError: one
        is missing or corrupt."""
        model, clip_passport = text_model.load(clip)
        decoder, passport = networks.load(autoencoder, device)
        own = spaces.own_clip(model.to(device), clip_passport.content_sha256)
        compared_in = [own, *(spaces.build(space, device) for space in params.feature_spaces)]
        oracle = None if isinstance(params.accuracy, RetrievalParams) else kinds.build(params.accuracy)
        sha256 = {"autoencoder": passport.content_sha256, "clip": clip_passport.content_sha256}
        return cls(compared_in, oracle, model, decoder, device, sha256)

    def prove_attention(self, image_size_px: int) -> None:
        """MachineError unless the attention backend can compute the autoencoder on images of this size."""
        shapes = self.autoencoder.attention_shapes(image_size_px // self.autoencoder.factor)
        attention.prove(self.device, shapes, "fp32", trains=False)

    @torch.no_grad()
    def measure(self, subject: Subject, rows: range, batch_size: int) -> dict[str, Tensor]:
        """Per image: `features_SPACE` [n, f] of every space; with prompts also CLIP's `clip_text` [n, e] and, by the
        oracle, `checks` and `shuffled_checks` [n, attributes], the latter with the claim of another prompt."""
        batches = [
            range(start, min(start + batch_size, rows.stop)) for start in range(rows.start, rows.stop, batch_size)
        ]
        parts = [self._measure(subject, batch) for batch in batches]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _measure(self, subject: Subject, rows: range) -> dict[str, Tensor]:
        pixels = images.to_tensor([subject.png(i) for i in rows]).to(self.device)
        if subject.decoded:
            pixels = to_image(self.autoencoder.decode(self.autoencoder.encode(to_signal(pixels)).mode()))
        tensors = {features_in(space.name): space.extract(pixels).float().cpu() for space in self.spaces}
        if subject.prompts is not None:
            ids = self.clip.tokenise([subject.prompts[i].prompt for i in rows]).to(self.device)
            tensors["clip_text"] = self.clip.text_features(ids).float().cpu()
            if self.oracle is not None:
                tensors |= _checks(self.oracle, subject.prompts, rows, pixels)
        return tensors


def _checks(
    oracle: Oracle, prompts: Sequence[Prompt], rows: range, pixels: UInt8[Tensor, "b 3 h w"]
) -> dict[str, Tensor]:
    """Every image against the claim of its own prompt, and against that of another one."""
    offset = metrics.shuffle_offset(len(prompts))
    claims = [(prompts[i].claim, prompts[(i + offset) % len(prompts)].claim) for i in rows]
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
    codes = np.stack([oracle.codes(image, pair) for image, pair in zip(arrays, claims, strict=True)])
    own, others = torch.from_numpy(codes).unbind(1)
    return {"checks": own, "shuffled_checks": others}


def units(subjects: Sequence[Subject], size: int) -> dict[str, tuple[Subject, range]]:
    """The work in pieces of at most `size` images of one subject, by name; those of a subject in the order of its
    images."""
    return {
        f"{subject.name}-{start:08d}": (subject, range(start, min(start + size, subject.count)))
        for subject in subjects
        for start in range(0, subject.count, size)
    }


def gather(
    work: Mapping[str, tuple[Subject, range]], tensors_of: Callable[[str], Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """All measurements by subject, in the order of its images. tensors_of: those of a unit of `work`, by its name."""
    parts: dict[str, list[Mapping[str, Tensor]]] = {}
    for key, (subject, _) in work.items():
        parts.setdefault(subject.name, []).append(tensors_of(key))
    return {
        subject: {name: torch.cat([unit[name] for unit in units]) for name in units[0]}
        for subject, units in parts.items()
    }


def beside_real(samples: Mapping[str, Samples], real: RealImages, count: int) -> "Image":
    """Samples of seen and then of held-out (or else unseen) prompts, at most `count` of each, every one beside the real
    image of its prompt."""
    cells: list[bytes] = []
    captions: list[str] = []
    for name, title in shown(samples).items():
        part = samples[name]
        for i, prompt in enumerate(part.prompts[:count]):
            cells += [part.png(i), real.png(prompt.split, prompt.key)]
            captions += [f"{title}: {prompt.prompt}", "real"]
    return images.grid(images.to_tensor(cells), _NUM_COLUMNS, captions)
