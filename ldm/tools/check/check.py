"""Validate a whole params file: every section by itself, then the rules between sections, each with its reason.

Reads no data and no weights, and does not import torch, so that a mistake is found within a second.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from pydantic import BaseModel

from ldm.autoencoder.encoding.params import EncodeLatentsParams
from ldm.autoencoder.training.params import TrainAutoencoderParams
from ldm.core import config
from ldm.core.errors import ConfigError
from ldm.core.params import MachineParams, PathsParams
from ldm.corpora.params import CorpusParams, PrepareParams, ShapesParams
from ldm.denoiser.model.params import UniformTimesParams, UniformWeightingParams
from ldm.denoiser.training.params import TrainUNetParams
from ldm.evaluation.params import EvaluateParams, InceptionSpaceParams
from ldm.sampling.params import SampleParams
from ldm.sampling.samplers.ancestral import DDIMParams
from ldm.text.embedding.params import EmbedTextParams
from ldm.text.training.params import (
    ClipFileParams,
    ClipFolderParams,
    OpenClipParams,
    TrainClipParams,
    TrainedClipParams,
)
from ldm.tools.check import objectives
from ldm.tools.tasks.params import TaskParams, TasksParams, names

SECTIONS: dict[str, type[config.Section]] = {
    "machine": MachineParams,
    "prepare": PrepareParams,
    "train_autoencoder": TrainAutoencoderParams,
    "encode_latents": EncodeLatentsParams,
    "train_clip": TrainClipParams,
    "embed_text": EmbedTextParams,
    "train_unet": TrainUNetParams,
    "sample": SampleParams,
    "evaluate": EvaluateParams,
    "tasks": TasksParams,
}
"""Sections of a params file; the section `paths` has its own file."""


@dataclass(frozen=True)
class Params:
    """A whole params file, and the paths of the repository."""

    paths: PathsParams
    machine: MachineParams
    prepare: PrepareParams
    train_autoencoder: TrainAutoencoderParams
    encode_latents: EncodeLatentsParams
    train_clip: TrainClipParams
    embed_text: EmbedTextParams
    train_unet: TrainUNetParams
    sample: SampleParams
    evaluate: EvaluateParams
    tasks: TasksParams


Finding = tuple[str, str, str]  # dotted key, "found ...; expected ...", what to do

_MIN_IMAGE_SIZE_PX = 11


def params_file(path: Path = config.PARAMS) -> Params:
    """Validate a file with `whole`."""
    return whole(config.Document(path))


def whole(document: config.Document) -> Params:
    """Validate every section of a params file and the paths of this repository, each alone and all together.

    Raises:
        ConfigError: lists every finding as `file:line: key: found; expected, because`, each with its fix.
    """
    values = config.read_all((document, SECTIONS), (config.Document(config.PATHS), {"paths": PathsParams}))
    params = Params(**values)  # pyright: ignore[reportArgumentType]
    findings = [finding for rule in RULES for finding in rule(params)]
    if findings:
        raise ConfigError.many([_error(document.where(_parts(key)), *rest) for key, *rest in findings])
    return params


def _parts(key: str) -> config.Loc:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _error(where: str, text: str, fix: str) -> ConfigError:
    found, _, expected = text.partition("; expected ")
    assert expected, f"a finding says what is expected: {text}"
    return ConfigError(where, found, expected, fix)


def _sizes(params: Params) -> Iterator[Finding]:
    """Sizes must agree from image to latent to the levels of the UNet."""
    autoencoder, unet = params.train_autoencoder.network, params.train_unet.network
    image_size_px = params.prepare.image_size_px
    factor = autoencoder.factor
    if image_size_px < _MIN_IMAGE_SIZE_PX:
        yield (
            "prepare.image_size_px",
            f"found {image_size_px}; expected at least {_MIN_IMAGE_SIZE_PX}, the window of structural similarity",
            f"set it to {_MIN_IMAGE_SIZE_PX} or more",
        )
    scales = params.train_autoencoder.reconstruction.num_gradient_scales
    if image_size_px >> (scales - 1) < 2:
        yield (
            "train_autoencoder.reconstruction.num_gradient_scales",
            f"found {scales}; expected at most {image_size_px.bit_length() - 1}: every scale halves "
            f"prepare.image_size_px {image_size_px}, and two pixels make a gradient",
            "lower it, or raise prepare.image_size_px",
        )
    if image_size_px % factor:
        yield (
            "prepare.image_size_px",
            f"found {image_size_px}; expected a multiple of {factor}, the pixels per latent of "
            "train_autoencoder.network (patch_px x 2^(levels - 1))",
            f"set it to {max(1, round(image_size_px / factor)) * factor}, or give the autoencoder other levels",
        )
        return
    if unet.latent_size != image_size_px // factor:
        yield (
            "train_unet.network.latent_size",
            f"found {unet.latent_size}; expected {image_size_px // factor}: prepare.image_size_px {image_size_px} over "
            f"the autoencoder's {factor} pixels per latent",
            f"set it to {image_size_px // factor}, or change prepare.image_size_px",
        )
    if unet.latent_channels != autoencoder.latent_channels:
        yield (
            "train_unet.network.latent_channels",
            f"found {unet.latent_channels}; expected {autoencoder.latent_channels} as in train_autoencoder.network",
            f"set it to {autoencoder.latent_channels}, or change the autoencoder",
        )


def _text(params: Params) -> Iterator[Finding]:
    """Widths and numbers of tokens must agree from CLIP's text tower to embeddings to cross-attention."""
    tower, unet = _text_tower(params.train_clip), params.train_unet.network
    kept = params.embed_text.context_tokens
    if tower is not None:
        width, context_length, num_layers = tower
        if unet.context_width != width:
            yield (
                "train_unet.network.context_width",
                f"found {unet.context_width}; expected {width}, the width of CLIP's text tower",
                f"set it to {width}, or choose another CLIP",
            )
        if kept is not None and kept > context_length:
            yield (
                "embed_text.context_tokens",
                f"found {kept}; expected null or at most {context_length}, all that CLIP's text tower reads",
                "set it to null, which keeps the longest caption",
            )
        if params.embed_text.layer == "penultimate" and num_layers < 2:
            found = "found penultimate; expected last: CLIP's text tower has one layer only"
            yield "embed_text.layer", found, "set it to last, or give the text tower more layers"
        kept = kept or context_length
    if kept is not None and unet.context_limit is not None and unet.context_limit < kept:
        yield (
            "train_unet.network.max_context_tokens",
            f"found {unet.context_limit}; expected at least {kept}, the most tokens that embed_text may keep",
            f"set it to {kept}, or lower embed_text.context_tokens",
        )


def _text_tower(clip: TrainClipParams) -> tuple[int, int, int] | None:
    """Width, context length and number of layers of the text tower; None if only the weights determine them."""
    if isinstance(clip.source, TrainedClipParams):
        text = clip.source.network.text
        return text.width, text.context_length, text.layers
    if isinstance(clip.source, ClipFolderParams):
        return None
    config = _open_clip_config(clip.source.architecture)
    text = config.get("text_cfg", {}) if config else {}
    return (
        (text["width"], text["context_length"], text["layers"])
        if {"width", "context_length", "layers"} <= set(text)
        else None
    )


def _open_clip_configs() -> dict[str, Path]:
    """open_clip's configuration files by architecture, located without importing open_clip, which would load torch."""
    spec = find_spec("open_clip")
    assert spec is not None and spec.origin is not None, "open_clip is a dependency"
    return {path.stem: path for path in (Path(spec.origin).parent / "model_configs").glob("*.json")}


def _open_clip_config(architecture: str) -> dict[str, Any] | None:
    path = _open_clip_configs().get(architecture)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def _pretrained(params: Params) -> Iterator[Finding]:
    """Names of pretrained models must be known, as far as this can be checked without loading them."""
    source = params.train_clip.source
    if isinstance(source, OpenClipParams | ClipFileParams) and _open_clip_config(source.architecture) is None:
        near = get_close_matches(source.architecture, list(_open_clip_configs()), 3)
        yield (
            "train_clip.source.architecture",
            f"found {source.architecture}; expected an architecture of open_clip (open_clip.list_models())",
            f"write {' or '.join(near)}" if near else "write one, such as ViT-L-14",
        )


def _weights(params: Params) -> Iterator[Finding]:
    """Weights that users bring must be in the folder where DVC looks for changes."""
    clip, init_from = params.train_clip.source, params.train_unet.init_from
    places = {
        "train_clip.source.path": (clip.path if isinstance(clip, ClipFileParams | ClipFolderParams) else None, "clip"),
        "train_unet.init_from.directory": (init_from.directory if init_from is not None else None, "unet"),
    }
    for i, space in enumerate(params.evaluate.feature_spaces):
        if isinstance(space, InceptionSpaceParams):
            places[f"evaluate.feature_spaces.{i}.weights"] = (space.weights, "inception")
    for key, (place, name) in places.items():
        folder = f"{params.paths.models}/{name}"
        if place is not None and (
            ".." in PurePosixPath(place).parts or not PurePosixPath(place).is_relative_to(folder)
        ):
            found = f"found {place}; expected a path in {folder}, the folder where DVC sees that weights changed"
            yield key, found, f"put the weights in {folder} and name them there"


def _guidance(params: Params) -> Iterator[Finding]:
    """Guidance needs a prediction without a caption, which the network learns only from dropped captions."""
    if params.train_unet.diffusion.caption_dropout > 0:
        return
    reason = "train_unet.diffusion.caption_dropout is 0, so the network never learned to answer without a caption"
    if params.sample.drawing.guidance_scale != 1:
        found = f"found {params.sample.drawing.guidance_scale:g}; expected 1: {reason}"
        yield "sample.drawing.guidance_scale", found, "set it to 1, or train with caption_dropout 0.1"
    if any(scale != 1 for scale in params.sample.sweep.guidance_scales):
        yield (
            "sample.sweep.guidance_scales",
            f"found {params.sample.sweep.guidance_scales}; expected [1] or []: {reason}",
            "set it to [], or train with caption_dropout 0.1",
        )


_SOUND = {
    "train_unet.diffusion.loss_weighting": UniformWeightingParams(kind="uniform"),
    "train_unet.diffusion.time_sampling": UniformTimesParams(kind="uniform"),
    "train_unet.diffusion.time_shift": 1.0,
    "train_unet.diffusion.prediction": "v",
    "sample.drawing.time_shift": 1.0,
    "sample.drawing.sampler": DDIMParams(kind="ddim", eta=0.0),
}
"""Values with which every schedule can be trained and sampled soundly."""


def _objective(params: Params) -> Iterator[Finding]:
    """The first, noisiest times of sampling must be trained well enough (see `ldm.tools.check.objectives`)."""
    visits = objectives.visits(params.train_unet.diffusion, params.sample.drawing)
    error = objectives.sample_error(visits)
    if error <= objectives.MAX_ERROR:
        return
    worst = max(visits, key=lambda visit: visit.error)
    late = 1 - objectives.weight_before(0.9, params.train_unet.diffusion)
    reason = (
        f"sampling asks at t = {worst.time:.3g}, where an error of the prediction is one of the clean latent "
        f"{worst.gain:.3g} times as large and training puts {worst.share:.2g} of an even share of its loss weight "
        f"({late:.2g} of all of it is above t = 0.9): samples would be wrong by {error:.2g} of their deviation, "
        f"more than {objectives.MAX_ERROR}"
    )
    document = {"train_unet.diffusion": params.train_unet.diffusion, "sample.drawing": params.sample.drawing}
    for key, value in _fewest_changes(params).items():
        section, name = key.rsplit(".", 1)
        found, expected = _in_words(getattr(document[section], name)), _in_words(value)
        yield key, f"found {found}; expected {expected}: {reason}", f"set it to {expected}"


def _in_words(value: Any) -> str:
    """A value as YAML writes it on one line."""
    pairs = value.model_dump().items() if isinstance(value, BaseModel) else None
    return str(value) if pairs is None else f"{{{', '.join(f'{key}: {entry}' for key, entry in pairs)}}}"


def _fewest_changes(params: Params) -> dict[str, Any]:
    """The smallest subset of `_SOUND` that makes the objective sound."""
    for size in range(1, len(_SOUND) + 1):
        for keys in combinations(_SOUND, size):
            diffusion, drawing = params.train_unet.diffusion, params.sample.drawing
            for key in keys:
                change = {key.rsplit(".", 1)[1]: _SOUND[key]}
                if key.startswith("sample."):
                    drawing = drawing.model_copy(update=change)
                else:
                    diffusion = diffusion.model_copy(update=change)
            if objectives.sample_error(objectives.visits(diffusion, drawing)) <= objectives.MAX_ERROR:
                return {key: _SOUND[key] for key in keys}
    raise AssertionError("with all of these values every schedule is sound")


def _corpus(params: Params) -> Iterator[Finding]:
    """What only some corpora have."""
    corpus, source = params.prepare.corpus, params.train_clip.source
    if isinstance(source, TrainedClipParams) and source.twins_together and not corpus.has_twins:
        yield (
            "train_clip.source.twins_together",
            f"found true; expected false: the corpus {corpus.kind} has no twins",
            "set it to false",
        )
    if isinstance(corpus, ShapesParams) and isinstance(source, TrainedClipParams):
        size, num_train = source.training.batch_size, corpus.num_train
        if size > num_train:
            found = f"found {size}; expected at most {num_train}, the images of prepare.corpus.num_train"
            yield "train_clip.source.training.batch_size", found, "lower it, or raise prepare.corpus.num_train"
    if not corpus.val_repeats_train and params.sample.seen_split == "val":
        reason = f"the validation split of {corpus.kind} shows things that training never showed"
        yield "sample.seen_split", f"found val; expected train: {reason}", "set it to train"


_CORPORA = {get_args(corpus.model_fields["kind"].annotation)[0] for corpus in get_args(CorpusParams)}


def _instruments(params: Params) -> Iterator[Finding]:
    """An oracle or a feature space that is named after a corpus can only be used with that corpus."""
    corpus = params.prepare.corpus.kind
    others = _CORPORA - {corpus}
    accuracy = params.evaluate.accuracy
    if accuracy.kind in others:
        yield (
            "evaluate.accuracy.kind",
            f"found {accuracy.kind}; expected retrieval: this oracle cannot check the captions of the corpus {corpus}",
            "write accuracy: {kind: retrieval, num_prompts: 200, k: 10, num_images: 10000}",
        )
    for i, space in enumerate(params.evaluate.feature_spaces):
        if space.kind in others:
            yield (
                f"evaluate.feature_spaces.{i}.kind",
                f"found {space.kind}; expected a space for any images: this one is for those of the corpus "
                f"{space.kind} only, not of {corpus}",
                "remove it",
            )


def _tasks(params: Params) -> Iterator[Finding]:
    """A task must fit the drawing that it changes."""
    for name in names():
        task: TaskParams = getattr(params.tasks, name)
        try:
            task.check(task.changes(params.sample.drawing).num_steps)
        except ConfigError as error:
            where, found, expected, fix = error.args
            yield f"tasks.{name}", f"{where}: {found}; expected {expected}", fix


RULES: tuple[Callable[[Params], Iterator[Finding]], ...] = (
    _sizes,
    _text,
    _pretrained,
    _weights,
    _objective,
    _guidance,
    _corpus,
    _instruments,
    _tasks,
)
