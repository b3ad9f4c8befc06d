"""Measure images: samples, the real images of their prompts, round trips of these through the autoencoder, and a
reference set of training images.

Each measurement depends on one image (and its prompt) alone, so the work is cut into units that any process may do.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ldm.autoencoder.model import networks
from ldm.autoencoder.model.network import Autoencoder, to_image, to_signal
from ldm.compute import attention
from ldm.compute.saved import State
from ldm.core import images
from ldm.core.errors import ConfigError
from ldm.core.params import Size
from ldm.core.shards import Shards
from ldm.evaluation import metrics, spaces
from ldm.evaluation.params import AccuracyParams, EvaluateParams, NoAccuracyParams, RetrievalParams, ShapesSpaceParams
from ldm.evaluation.real_images import Origin, RealImages, scattered
from ldm.evaluation.spaces import FeatureSpace
from ldm.oracles import kinds
from ldm.oracles.oracle import Oracle, Told
from ldm.oracles.params import ClassifierOracleParams
from ldm.sampling.samples import SEEN, SETS, Prompt, Samples, shown
from ldm.text.model import clip as text_model
from ldm.text.model import encoders
from ldm.text.model.clip import Clip

if TYPE_CHECKING:
    from PIL.Image import Image

Measured = Mapping[str, Mapping[str, Tensor]]
"""Tensors of `Instruments.measure`, by name of the subject."""
Measurement = tuple[dict[str, Tensor], dict[str, list[list[Told]]]]
"""Tensors, and values as JSON can hold them."""
TOLD = "told"
REAL, DECODED = "real_", "decoded_"
"""Prefixes of the name of a set: the real images of its prompts, and their round trips through the autoencoder."""
REFERENCE, GALLERY, REAL_SWEEP = "reference", "gallery", "real_sweep"
NUM_COLUMNS = 8
"""Columns of a picture of pairs; even, so that both images of a pair are in one row."""


def features_in(space: str) -> str:
    """Name of the tensor that holds the features in a space."""
    return f"features_{space}"


@dataclass(frozen=True)
class Subject:
    """A set of images to measure. With prompts, image i is measured against prompt i. If `decoded`, images pass through
    the autoencoder first."""

    name: str
    count: int
    png: Callable[[int], bytes]
    prompts: list[Prompt] | None
    decoded: bool


def subjects(samples: Mapping[str, Samples], real: RealImages, params: EvaluateParams) -> list[Subject]:
    """All sets of images to measure; a gallery is among them only if accuracy is measured by retrieval.

    ConfigError: fewer than two training images are left for the reference, because all others gave a prompt.
    """
    # Samples, then the real images of their prompts (and round trips), then images that have no prompt.
    chosen = [Subject(name, len(part), part.png, part.prompts, decoded=False) for name, part in samples.items()]
    for name in [name for name in SETS if name in samples]:
        prompts = samples[name].prompts
        chosen.append(_real(REAL + name, _origins(prompts, real), real, prompts))
        chosen.append(_real(DECODED + name, _origins(prompts, real), real, prompts, decoded=True))
    sweep = next((part.prompts for name, part in samples.items() if name not in SETS), None)
    if sweep is not None:
        chosen.append(_real(REAL_SWEEP, _origins(sweep, real), real, sweep))
    prompted = {origin for part in samples.values() for origin in _origins(part.prompts, real)}
    chosen.append(_real(REFERENCE, _reference(real, prompted, params.num_reference_images), real))
    if isinstance(params.accuracy, RetrievalParams):
        chosen.append(_real(GALLERY, _gallery(samples, real, params.accuracy), real))
    return chosen


def _origins(prompts: Sequence[Prompt], real: RealImages) -> list[Origin]:
    return [real.origin(prompt) for prompt in prompts]


def _real(
    name: str,
    origins: Sequence[Origin],
    real: RealImages,
    prompts: list[Prompt] | None = None,
    decoded: bool = False,
) -> Subject:
    return Subject(name, len(origins), lambda i: real.png(origins[i]), prompts, decoded)


def _reference(real: RealImages, prompted: set[Origin], count: int) -> list[Origin]:
    free = list(islice((origin for origin in scattered(real, "train") if origin not in prompted), count))
    if len(free) < 2:
        found = f"{len(free)} of {real.count('train')} training images have given no prompt"
        fix = "lower sample.num_prompts_seen, or take sample.seen_split: val"
        raise ConfigError("params.yaml: evaluate.num_reference_images", found, "at least two", fix)
    return free


def _gallery(samples: Mapping[str, Samples], real: RealImages, params: RetrievalParams) -> list[Origin]:
    """The images to search: the real images of the prompts, in their order, then others from training and
    validation."""
    own = dict.fromkeys(_origins(samples[SEEN].prompts[: params.num_prompts], real))
    others = (origin for origin in chain(scattered(real, "train"), scattered(real, "val")) if origin not in own)
    return [*own, *islice(others, max(0, params.num_images - len(own)))]


def matching(
    samples: Mapping[str, Samples],
    real: RealImages,
    captions: Mapping[str, Sequence[Sequence[str]]],
    params: AccuracyParams,
) -> Bool[Tensor, "prompts gallery"] | None:
    """Whether each image of the gallery has each prompt among its captions; None if nothing is searched.

    captions: split (train and val) -> the captions of every image, in the order of the images.
    """
    if not isinstance(params, RetrievalParams):
        return None
    gallery = [set(captions[split][number]) for split, number in _gallery(samples, real, params)]
    prompts = [prompt.prompt for prompt in samples[SEEN].prompts[: params.num_prompts]]
    return torch.tensor([[prompt in texts for texts in gallery] for prompt in prompts])


@dataclass(frozen=True)
class Instruments:
    """The networks, feature spaces and oracle that images are measured with."""

    spaces: Sequence[FeatureSpace]
    """Feature spaces in which images are compared, including that of the run's own CLIP, if it has one."""
    oracle: Oracle | None
    """Checks claims; None without one."""
    clip: Clip | None
    """The run's own; None if another text encoder does without one."""
    autoencoder: Autoencoder
    device: torch.device
    sha256: Mapping[str, str]
    """Hashes of the CLIP (if there is one), of the autoencoder, of weights that were brought for feature spaces, and of
    the captions that a classifier learned from."""

    @classmethod
    def load(
        cls, params: EvaluateParams, clip: Path, autoencoder: Path, pairs: tuple[Path, Path], device: torch.device
    ) -> Self:
        """Load both networks from their folders, and build the feature spaces and the oracle of the params.

        pairs: folders of the training images and of their captions, from which a classifier learns.

        IntegrityError: one of them is missing or corrupt.
        """
        decoder, passport = networks.load(autoencoder, device)
        compared_in = [spaces.build(space, device) for space in params.feature_spaces]
        sha256, model = {"autoencoder": passport.content_sha256}, None
        for space, built in zip(params.feature_spaces, compared_in, strict=True):
            if not isinstance(space, ShapesSpaceParams):  # which belongs to the code
                sha256[f"space_{space.kind}"] = built.sha256
        if encoders.has_clip(clip):
            model, clip_passport = text_model.load(clip)
            sha256["clip"] = clip_passport.content_sha256
            compared_in.insert(0, spaces.own_clip(model.to(device), clip_passport.content_sha256))
        oracle = None
        if not isinstance(params.accuracy, RetrievalParams | NoAccuracyParams):
            oracle = kinds.build(params.accuracy, *pairs)
        if isinstance(params.accuracy, ClassifierOracleParams):
            sha256["captions_train"] = Shards(pairs[1]).sha256
        return cls(compared_in, oracle, model, decoder, device, sha256)

    def prove_attention(self, sizes_px: Iterable[Size]) -> None:
        """MachineError unless the attention backend can run the autoencoder on images of these sizes."""
        for sides in sizes_px:
            height, width = (side // self.autoencoder.factor for side in sides)
            attention.prove(self.device, self.autoencoder.attention_shapes(height, width), "fp32", trains=False)

    @torch.no_grad()
    def measure(self, subject: Subject, rows: range, batch_size: int) -> Measurement:
        """Measure the images `rows` of a subject: tensors, and values.

        Always `features_SPACE` [n, f] in every space. With prompts also `clip_text` [n, e], CLIP's text features, if
        there is one, and with an oracle `checks` and `shuffled_checks` [n, attributes], codes for the image's own claim
        and for the claim of another prompt. The values are then `told`: by image, what its claim states and what was
        read.
        """
        batches = [
            range(start, min(start + batch_size, rows.stop)) for start in range(rows.start, rows.stop, batch_size)
        ]
        return _joined([self._measure(subject, batch) for batch in batches])

    def _measure(self, subject: Subject, rows: range) -> Measurement:
        """Images of each size are one batch; the results are in the order of `rows`."""
        arrays = [images.decode(subject.png(i)) for i in rows]
        sizes = {array.shape: [i for i, other in enumerate(arrays) if other.shape == array.shape] for array in arrays}
        parts = [
            self._measure_batch(subject, [rows[i] for i in places], images.stacked([arrays[i] for i in places]))
            for places in sizes.values()
        ]
        order = torch.tensor([i for places in sizes.values() for i in places]).argsort()
        tensors, values = _joined(parts)
        return (
            {name: tensor[order] for name, tensor in tensors.items()},
            {name: [each[i] for i in order.tolist()] for name, each in values.items()},
        )

    def _measure_batch(self, subject: Subject, rows: Sequence[int], pixels: UInt8[Tensor, "b 3 h w"]) -> Measurement:
        pixels = pixels.to(self.device)
        if subject.decoded:
            pixels = to_image(self.autoencoder.decode(self.autoencoder.encode(to_signal(pixels)).mode()))
        tensors = {features_in(space.name): space.extract(pixels).float().cpu() for space in self.spaces}
        values: dict[str, list[list[Told]]] = {}
        if subject.prompts is not None:
            if self.clip is not None:
                ids = self.clip.tokenise([subject.prompts[i].prompt for i in rows]).to(self.device)
                tensors["clip_text"] = self.clip.text_features(ids).float().cpu()
            if self.oracle is not None:
                checks, values[TOLD] = _checks(self.oracle, subject.prompts, rows, pixels)
                tensors |= checks
        return tensors, values


def _joined(parts: Sequence[Measurement]) -> Measurement:
    """Parts of a subject in their order as one."""
    tensors = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
    return tensors, {name: [each for _, part in parts for each in part[name]] for name in parts[0][1]}


def _checks(
    oracle: Oracle, prompts: Sequence[Prompt], rows: Sequence[int], pixels: UInt8[Tensor, "b 3 h w"]
) -> tuple[dict[str, Tensor], list[list[Told]]]:
    """Check every image against the claim of its own prompt, and against the claim of another prompt; and what was
    read beside its own claim."""
    offset = metrics.shuffle_offset(len(prompts))
    claims = [(prompts[i].claim, prompts[(i + offset) % len(prompts)].claim) for i in rows]
    readings = [oracle.read(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
    codes = np.stack([oracle.codes(reading, pair) for reading, pair in zip(readings, claims, strict=True)])
    told = [
        [] if claim is None else oracle.told(claim, reading)
        for reading, (claim, _) in zip(readings, claims, strict=True)
    ]
    own, others = torch.from_numpy(codes).unbind(1)
    return {"checks": own, "shuffled_checks": others}, told


def units(subjects: Sequence[Subject], size: int) -> dict[str, tuple[Subject, range]]:
    """The work in units of at most `size` images of one subject, by name; the units of a subject are in the order of
    its images."""
    return {
        f"{subject.name}-{start:08d}": (subject, range(start, min(start + size, subject.count)))
        for subject in subjects
        for start in range(0, subject.count, size)
    }


def gather(
    work: Mapping[str, tuple[Subject, range]], unit_of: Callable[[str], State]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[list[Told]]]]:
    """All measurements by subject, in the order of its images: tensors, and what was told of it by an oracle.
    unit_of: name of a unit of `work` -> what was kept of it."""
    parts: dict[str, list[Measurement]] = {}
    for key, (subject, _) in work.items():
        unit = unit_of(key)
        parts.setdefault(subject.name, []).append((unit.tensors, unit.values))
    whole = {subject: _joined(units) for subject, units in parts.items()}
    told = {subject: values[TOLD] for subject, (_, values) in whole.items() if TOLD in values}
    return {subject: tensors for subject, (tensors, _) in whole.items()}, told


def beside_real(samples: Mapping[str, Samples], real: RealImages, count: int) -> "Image":
    """Picture of samples, each beside the real image of its prompt: at most `count` of seen prompts, then of held-out
    (or else unseen) ones, then of reworded ones."""
    cells: list[bytes] = []
    captions: list[str] = []
    for name, title in shown(samples).items():
        part = samples[name]
        for i, prompt in enumerate(part.prompts[:count]):
            cells += [part.png(i), real.png(real.origin(prompt))]
            captions += [f"{title}: {prompt.prompt}", "real"]
    return images.grid(images.planes(cells), NUM_COLUMNS, captions)
