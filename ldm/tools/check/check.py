"""Validate a whole params file: every section by itself, then the rules between sections, each with its reason.

Reads no data and no weights, and does not import torch, so that a mistake is found within a second.
"""

import json
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel

from ldm.autoencoder.training.params import PretrainedAutoencoderParams
from ldm.core import config
from ldm.core.errors import ConfigError
from ldm.core.params import PathsParams
from ldm.denoiser.model.params import UniformTimesParams, UniformWeightingParams
from ldm.evaluation.params import ClipSpaceParams, InceptionSpaceParams
from ldm.sampling.guidance.params import AutoguidanceParams, ClassifierParams
from ldm.sampling.samplers import propagation
from ldm.sampling.samplers.ancestral import DDIMParams
from ldm.text.model.params import MAX_TOKENS
from ldm.text.training.params import (
    ClipFileParams,
    ClipFolderParams,
    NoClipParams,
    OpenClipParams,
    TrainClipParams,
    TrainedClipParams,
    TransformersParams,
    UntrainedClipParams,
)
from ldm.tools.check import contents, objectives
from ldm.tools.check.sections import SECTIONS, Finding, Params
from ldm.tools.tasks.params import TaskParams, names

_TOKENIZER = "tokenizer_config.json"
"""File of a tokenizer of transformers that says how many tokens of a text it keeps."""


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
    autoencoder, unet = params.train_autoencoder.source, params.train_unet.network
    image_size_px = params.prepare.image_size_px
    factor = autoencoder.factor
    reconstruction = params.train_autoencoder.reconstruction
    scales = reconstruction.num_gradient_scales if reconstruction else 1
    side_px = min(side for size in params.prepare.corpus.sizes_px(image_size_px) for side in size)
    side = f"prepare.image_size_px {side_px}" if side_px == image_size_px else f"{side_px} px of a bucket"
    fix = "lower it, or raise prepare.image_size_px"
    if reconstruction and reconstruction.equivariance and reconstruction.gradient_weight:
        least = reconstruction.equivariance.min_scale
        side_px = factor * max(1, round(least * (side_px // factor)))
        side += f", which equivariance.min_scale {least:g} makes {side_px} px"
        fix += " or equivariance.min_scale"
    if side_px >> (scales - 1) < 2:
        yield (
            "train_autoencoder.source.reconstruction.num_gradient_scales",
            f"found {scales}; expected at most {side_px.bit_length() - 1}: every scale halves "
            f"{side}, and two pixels make a gradient",
            fix,
        )
    if image_size_px % factor:
        yield (
            "prepare.image_size_px",
            f"found {image_size_px}; expected a multiple of {factor}, the pixels per latent of "
            "train_autoencoder.source (patch_px x 2^(levels - 1))",
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
            f"found {unet.latent_channels}; expected {autoencoder.latent_channels} as in train_autoencoder.source",
            f"set it to {autoencoder.latent_channels}, or change the autoencoder",
        )


def _shapes(params: Params) -> Iterator[Finding]:
    """Networks must take images of every size that `prepare` makes and `sample` draws."""
    unet, image_size_px = params.train_unet.network, params.prepare.image_size_px
    multiple = params.train_autoencoder.source.factor * unet.size_multiple
    reason = f"expected multiples of {multiple}, the pixels of a position in the lowest level of the UNet"
    sizes_px, drawn = params.prepare.corpus.sizes_px(image_size_px), params.sample.drawing.size_px
    wrong = [f"{height} x {width}" for height, width in sizes_px if height % multiple or width % multiple]
    if len(sizes_px) > 1 and wrong:
        found = f"found buckets of {', '.join(wrong)}; {reason}"
        yield "prepare.corpus.pixels.framing.step_px", found, f"set it to a multiple of {multiple}"
    if len(sizes_px) > 1 and unet.position_embedding:
        found = f"found true; expected false: prepare makes images of {len(sizes_px)} sizes, and positions fit one"
        fix = "set it to false, or prepare.corpus.pixels.framing.kind to square"
        yield "train_unet.network.position_embedding", found, fix
    if drawn is not None and (drawn[0] % multiple or drawn[1] % multiple):
        yield "sample.drawing.size_px", f"found {list(drawn)}; {reason}", "change it, or set it to null"
    elif drawn not in (None, (image_size_px, image_size_px)) and unet.position_embedding:
        found = f"found {list(drawn or ())}; expected null: the positions of train_unet.network fit the square alone"
        yield "sample.drawing.size_px", found, "set it to null, or train_unet.network.position_embedding to false"


def _mirroring(params: Params) -> Iterator[Finding]:
    """Mirrored images must be encoded to be seen, and are encoded for nothing else."""
    if params.train_unet.mirroring is not None and not params.encode_latents.mirrored:
        found = "found false; expected true: train_unet.mirroring shows mirrored images"
        yield "encode_latents.mirrored", found, "set it to true, or train_unet.mirroring to null"
    if params.train_unet.mirroring is None and params.encode_latents.mirrored:
        found = "found true; expected false: train_unet.mirroring is null, so that nothing reads mirrored images"
        yield "encode_latents.mirrored", found, "set it to false, or name words in train_unet.mirroring.unless"


def _text(params: Params) -> Iterator[Finding]:
    """Widths and numbers of tokens must agree from the text encoder to embeddings to cross-attention."""
    tower, unet = _text_tower(params.train_clip), params.train_unet.network
    kept = params.embed_text.context_tokens
    if tower is not None:
        width, context_length, num_layers = tower
        if unet.context_width != width:
            yield (
                "train_unet.network.context_width",
                f"found {unet.context_width}; expected {width}, the width of the text encoder",
                f"set it to {width}, or choose another text encoder",
            )
        if kept is not None and kept > context_length:
            yield (
                "embed_text.context_tokens",
                f"found {kept}; expected null or at most {context_length}, all that the text encoder reads",
                "set it to null, which keeps the longest caption",
            )
        if params.embed_text.layer == "penultimate" and num_layers < 2:
            found = "found penultimate; expected last: the text encoder has one layer only"
            yield "embed_text.layer", found, "set it to last, or give the text tower more layers"
        kept = kept or context_length
    if kept is not None and unet.context_limit is not None and unet.context_limit < kept:
        yield (
            "train_unet.network.max_context_tokens",
            f"found {unet.context_limit}; expected at least {kept}, the most tokens that embed_text may keep",
            f"set it to {kept}, or embed_text.context_tokens to {unet.context_limit}",
        )


def _text_tower(clip: TrainClipParams) -> tuple[int, int, int] | None:
    """Width, context length and number of layers of the text encoder; None if only the weights determine them."""
    if isinstance(clip.text_encoder, TransformersParams):
        return _transformers_tower(Path(clip.text_encoder.path), clip.text_encoder.tokenizer)
    if isinstance(clip.source, TrainedClipParams | UntrainedClipParams):
        text = clip.source.network.text
        return text.width, text.context_length, text.layers
    if isinstance(clip.source, ClipFolderParams | NoClipParams):
        return None
    config = _open_clip_config(clip.source.architecture)
    text = config.get("text_cfg", {}) if config else {}
    return (
        (text["width"], text["context_length"], text["layers"])
        if {"width", "context_length", "layers"} <= set(text)
        else None
    )


def _transformers_tower(folder: Path, tokenizer: str | None) -> tuple[int, int, int] | None:
    """The same from a folder of transformers; None if config.json is not there or leaves something out. The stage that
    reads the weights says what is wrong with it. tokenizer: its folder, if that is another one."""
    try:
        config: Any = json.loads((folder / "config.json").read_bytes())
        text = config.get("text_config", config)
        width, num_layers = (
            next(text[name] for name in names if name in text)
            for names in (("hidden_size", "d_model", "n_embd"), ("num_hidden_layers", "num_layers", "n_layer"))
        )
        file = Path(tokenizer or folder) / _TOKENIZER
        words: Any = json.loads(file.read_bytes()) if file.is_file() else {}
        limits = (text.get("max_position_embeddings"), words.get("model_max_length"))
        return int(width), min(int(limit or MAX_TOKENS) for limit in (*limits, MAX_TOKENS)), int(num_layers)
    except (OSError, ValueError, TypeError, AttributeError, StopIteration, RuntimeError, OverflowError):
        return None


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
    places = {"train_clip.source": params.train_clip.source}
    places |= {f"evaluate.feature_spaces.{i}": space for i, space in enumerate(params.evaluate.feature_spaces)}
    for place, clip in places.items():
        if not isinstance(clip, OpenClipParams | ClipFileParams | ClipSpaceParams):
            continue
        known = _open_clip_config(clip.architecture)
        if known is None:
            near = get_close_matches(clip.architecture, list(_open_clip_configs()), 3)
            yield (
                f"{place}.architecture",
                f"found {clip.architecture}; expected an architecture of open_clip (open_clip.list_models())",
                f"write {' or '.join(near)}" if near else "write one, such as ViT-L-14",
            )
        elif isinstance(clip, ClipSpaceParams) and "hf_tokenizer_name" in known["text_cfg"]:
            found = f"found {clip.architecture}; expected one whose tokenizer is open_clip's own"
            yield f"{place}.architecture", found, "write one of those, such as ViT-L-14-336"
        elif isinstance(clip, ClipSpaceParams) and known.get("quick_gelu") and not clip.quick_gelu:
            found = f"found false; expected true, since {clip.architecture} is with QuickGELU"
            yield f"{place}.quick_gelu", found, "set it to true, or name another architecture"


def _weights(params: Params) -> Iterator[Finding]:
    """Weights that users bring must be in the folder where DVC looks for changes."""
    clip, init_from = params.train_clip.source, params.train_unet.init_from
    autoencoder = params.train_autoencoder.source
    guide = params.sample.drawing.guidance
    is_brought = isinstance(autoencoder, PretrainedAutoencoderParams)
    loss = params.train_autoencoder.reconstruction
    lpips = loss.perceptual if loss is not None else None
    encoder = params.train_clip.text_encoder
    brought = encoder if isinstance(encoder, TransformersParams) else None
    places = {
        "train_clip.text_encoder.path": (brought and brought.path, "clip"),
        "train_clip.text_encoder.tokenizer": (brought and brought.tokenizer, "clip"),
        "train_autoencoder.source.path": (autoencoder.path if is_brought else None, "autoencoder"),
        "train_autoencoder.source.reconstruction.perceptual.weights": (lpips.weights if lpips else None, "lpips"),
        "train_clip.source.path": (clip.path if isinstance(clip, ClipFileParams | ClipFolderParams) else None, "clip"),
        "train_unet.init_from.path": (init_from.path if init_from is not None else None, "unet"),
        "sample.drawing.guidance.directory": (
            guide.directory if isinstance(guide, AutoguidanceParams | ClassifierParams) else None,
            "guidance",
        ),
    }
    for i, space in enumerate(params.evaluate.feature_spaces):
        if isinstance(space, InceptionSpaceParams | ClipSpaceParams):
            places[f"evaluate.feature_spaces.{i}.weights"] = (space.weights, "inception")
    for key, (place, name) in places.items():
        folder = f"{params.paths.models}/{name}"
        if place is not None and (
            ".." in PurePosixPath(place).parts or not PurePosixPath(place).is_relative_to(folder)
        ):
            found = f"found {place}; expected a path in {folder}, the folder where DVC sees that weights changed"
            yield key, found, f"put the weights in {folder} and name them there"


def _guidance(params: Params) -> Iterator[Finding]:
    """Guidance by a prediction without a caption needs a network that learned it from dropped captions; a threshold
    needs latents that are pixels."""
    drawing, scales = params.sample.drawing, params.sample.sweep.guidance_scales
    factor = params.train_autoencoder.source.factor
    if drawing.dynamic_threshold is not None and factor > 1:
        found = f"found {drawing.dynamic_threshold:g}; expected null: only values of pixels have limits, and a latent "
        found += f"of train_autoencoder.source covers {factor} x {factor} of them"
        yield "sample.drawing.dynamic_threshold", found, "set it to null"
    if params.train_unet.diffusion.caption_dropout > 0:
        return
    reason = "train_unet.diffusion.caption_dropout is 0, so the network never learned to answer without a caption"
    fix, neutral = "or train with caption_dropout 0.1", drawing.unguided
    if drawing.needs_null:
        found = f"found {drawing.guidance_scale:g}; expected {neutral}: {reason}"
        yield "sample.drawing.guidance_scale", found, f"set it to {neutral}, {fix}"
    if any(drawing.model_copy(update={"guidance_scale": scale}).needs_null for scale in scales):
        found = f"found {scales}; expected [] or only {neutral}: {reason}"
        yield "sample.sweep.guidance_scales", found, f"set it to [], {fix}"


def _drawing(params: Params) -> Iterator[Finding]:
    """The schedule must not rule the drawing out, as it would again when a network is sampled."""
    found = propagation.refusal(params.train_unet.diffusion.schedule, params.sample.drawing)
    if found is not None:
        yield f"sample.drawing.{found.field}", f"found {found.found}; expected {found.expected}", found.fix


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
    if any(_drawing(params)):
        return
    visits = objectives.visits(params.train_unet.diffusion, params.sample.drawing)
    error = objectives.sample_error(visits)
    if error <= propagation.MAX_ERROR:
        return
    worst = max(visits, key=lambda visit: visit.error)
    late = 1 - objectives.weight_before(0.9, params.train_unet.diffusion)
    reason = (
        f"sampling asks at t = {worst.time:.3g}, where an error of the prediction is one of the clean latent "
        f"{worst.gain:.3g} times as large and training puts {worst.share:.2g} of an even share of its loss weight "
        f"({late:.2g} of all of it is above t = 0.9): samples would be wrong by {error:.2g} of their deviation, "
        f"more than {propagation.MAX_ERROR}"
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
    sound = dict(_SOUND)
    if params.train_unet.diffusion.schedule == "ve":
        del sound["train_unet.diffusion.prediction"]  # edm, the only one that it takes, is sound
    for size in range(1, len(sound) + 1):
        for keys in combinations(sound, size):
            diffusion, drawing = params.train_unet.diffusion, params.sample.drawing
            for key in keys:
                change = {key.rsplit(".", 1)[1]: sound[key]}
                if key.startswith("sample."):
                    drawing = drawing.model_copy(update=change)
                else:
                    diffusion = diffusion.model_copy(update=change)
            if objectives.sample_error(objectives.visits(diffusion, drawing)) <= propagation.MAX_ERROR:
                return {key: sound[key] for key in keys}
    raise AssertionError("with all of these values every schedule is sound")


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
    _shapes,
    _mirroring,
    _text,
    _pretrained,
    _weights,
    _drawing,
    _objective,
    _guidance,
    contents.kinds,
    contents.captions,
    contents.instruments,
    contents.oracles,
    contents.own_clip,
    _tasks,
)
