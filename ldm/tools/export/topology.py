"""What of a model lies outside Stable Diffusion's topology, for which other tools have code: it is refused by name."""

from collections.abc import Iterator
from typing import Literal

from pydantic import TypeAdapter

from ldm.autoencoder.model.kl import KLAutoencoder
from ldm.autoencoder.model.network import Autoencoder
from ldm.core.errors import ConfigError
from ldm.denoiser.model.params import DiffusionParams, NetworkParams, UNetParams
from ldm.text.embedding.embeddings import TextEncoder
from ldm.text.embedding.tower import TextTower
from ldm.text.model.clip import Clip
from ldm.text.model.transformers_tower import TransformersTower
from ldm.tools.pipeline import Pipeline

Format = Literal["diffusers", "single-file"]
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
"""Names in diffusers of what a network may predict of the schedules that are tables."""
TABLES = ("linear", "scaled_linear", "zero_terminal_snr", "cosine")
_CLIP, _TOKENIZERS = "clip_text_model", ("CLIPTokenizer", "CLIPTokenizerFast")
_FIX = "train a model that exports (`ldm recipe exportable`), or use this one by `ldm generate`"
Misfit = tuple[str, object, str]
"""Key of the params, value, and what is expected and why."""


def check(pipeline: Pipeline, format: Format) -> None:
    """ConfigError: parts of the model have no place in the format; names all of them."""
    generator = pipeline.generator
    misfits = [
        *_of_unet(unet_params(pipeline)),
        *_of_diffusion(diffusion_params(pipeline)),
        *_of_autoencoder(generator.autoencoder, format),
        *_of_text(pipeline.encode),
    ]
    if misfits:
        raise ConfigError.many([ConfigError(key, _in_yaml(value), expected, _FIX) for key, value, expected in misfits])


def unet_params(pipeline: Pipeline) -> UNetParams:
    """Topology of the UNet."""
    return TypeAdapter(NetworkParams).validate_python(pipeline.generator.passport.config["network"])


def diffusion_params(pipeline: Pipeline) -> DiffusionParams:
    """What the UNet was trained for."""
    return DiffusionParams.model_validate(pipeline.generator.passport.config["diffusion"])


def clip_of(model: object) -> Clip | None:
    """The text encoder, if it is a CLIP with a `TextTower`; others have options that transformers does not know."""
    return model if isinstance(model, Clip) and isinstance(model.model, TextTower) else None


def transformers_clip_of(model: object) -> TransformersTower | None:
    """The text encoder, if it is a CLIP of transformers, as in a folder of Stable Diffusion."""
    return model if isinstance(model, TransformersTower) and model.config["model_type"] == _CLIP else None


def _of_unet(params: UNetParams) -> Iterator[Misfit]:
    section = "train_unet.network"
    if params.position_embedding:
        yield f"{section}.position_embedding", True, "false: Stable Diffusion's UNet learns no positions"
    if params.num_context_layers:
        yield f"{section}.num_context_layers", params.num_context_layers, "0: its UNet reads token states as they are"


def _of_diffusion(params: DiffusionParams) -> Iterator[Misfit]:
    section, is_flow = "train_unet.diffusion", params.schedule == "flow"
    if not is_flow and params.schedule not in TABLES:
        yield f"{section}.schedule", params.schedule, f"flow or {', '.join(TABLES)}: diffusers has schedulers for these"
    elif is_flow and params.prediction != "flow":
        yield f"{section}.prediction", params.prediction, "flow, the one that diffusers' flow-matching scheduler takes"
    elif not is_flow and params.prediction not in PREDICTIONS:
        yield f"{section}.prediction", params.prediction, f"{', '.join(PREDICTIONS)} with schedule {params.schedule}"


def _of_autoencoder(autoencoder: Autoencoder, format: Format) -> Iterator[Misfit]:
    section = "train_autoencoder.source.network"
    if not isinstance(autoencoder, KLAutoencoder):
        kind = type(autoencoder).__name__
        yield f"{section}.kind", kind, "kl: Stable Diffusion's pipelines decode with a KL autoencoder"
        return
    if (side := autoencoder.encoder.patch_px) > 1:
        yield f"{section}.patch_px", side, "1: Stable Diffusion's autoencoder has no patchifying stem"
    if format == "single-file" and not len(autoencoder.encoder.mid_block.attentions):
        yield f"{section}.middle_attention", False, "true: loaders of single files know no autoencoder without it"


def _of_text(encode: TextEncoder) -> Iterator[Misfit]:
    if encode.is_masked:
        yield "embed_text.padding", "masked", "attended: Stable Diffusion's pipelines pass no mask"
    if not encode.norm:
        yield "embed_text.norm", False, "true: transformers' CLIP always ends in its layer norm"
    if (tower := transformers_clip_of(encode.model)) is not None:
        if (kind := tower.tokenizer.kind) not in _TOKENIZERS:
            yield "train_clip.text_encoder.tokenizer", kind, "CLIPTokenizer, the one of Stable Diffusion's pipelines"
        return
    if (clip := clip_of(encode.model)) is None:
        kind = getattr(encode.model, "config", {}).get("model_type", type(encode.model).__name__)
        yield "train_clip", kind, "a CLIP of transformers, or one whose text tower is open_clip's plain one"
        return
    if not clip.model.is_causal:
        yield "train_clip.source.network.text.causal", False, "true: transformers' CLIP is causal"
    if options := clip.model_cfg["text_cfg"].get("tokenizer_kwargs"):
        yield (
            "train_clip.source",
            f"tokenizer options {options}",
            "none: transformers' CLIPTokenizer has no such options",
        )


def _in_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
