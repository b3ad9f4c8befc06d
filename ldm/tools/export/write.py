"""A model as a folder of diffusers, or as a single file."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.exchange import files, names
from ldm.tools.export import folding, parts, writing
from ldm.tools.export.topology import Format, check
from ldm.tools.pipeline import Pipeline

FACTS = "ldm.json"
"""File of a folder that says what it was made from, and how our images are drawn."""
UNFOLDED = "unfolded.safetensors"
"""Beside the autoencoder's weights: what folding has changed, as it was, from which our autoencoder can be put together
bit by bit. No reader of ours does: the UNet of the export knows the folded latents."""


def export(pipeline: Pipeline, path: Path, format: Format) -> None:
    """Write the model to `path`: a folder, or a file. ConfigError: something is there, or the model does not fit the
    format. MachineError: the disk refuses it."""
    writing.check_new(path)
    check(pipeline, format)
    with writing.new(path) as part:
        if format == "diffusers":
            _folder(pipeline, part)
        else:
            writing.save(part, single_file(pipeline), {files.STATED: json.dumps(facts(pipeline) | _configs(pipeline))})


def facts(pipeline: Pipeline) -> dict[str, Any]:
    """What a file was made from, and the scale of each adapter in its UNet by SHA-256; what its UNet predicts; the
    settings of our images."""
    diffusion = pipeline.generator.passport.config["diffusion"]
    return {
        "made_from": dict(pipeline.generator.inputs),
        "adapters": dict(pipeline.generator.adapters),
        "prediction": diffusion["prediction"],
        "schedule": diffusion["schedule"],
        "drawing": pipeline.drawing.model_dump(mode="json"),
    }


def single_file(pipeline: Pipeline) -> dict[str, Tensor]:
    """All networks in the layout of CompVis and Stability, which has a text encoder of one of two kinds
    (`parts.is_second`)."""
    text = parts.text_encoder(pipeline).tensors
    if parts.is_second(pipeline):
        text = names.under(names.text_to_open_clip(text), names.OPEN_CLIP_TEXT)
    else:
        text = names.under(text, names.TRANSFORMERS_TEXT)
    return (
        names.under(names.unet_to_single(parts.unet(pipeline).tensors), names.UNET)
        | names.under(names.vae_to_single(parts.vae(pipeline).tensors), names.VAE)
        | text
    )


def _configs(pipeline: Pipeline) -> dict[str, Any]:
    """The config of each network by its folder in a pipeline: weights do not say how many heads and groups they have,
    and other tools take those of Stable Diffusion."""
    return {"unet": parts.unet(pipeline).config, "vae": parts.vae(pipeline).config}


def _folder(pipeline: Pipeline, folder: Path) -> None:
    scheduler, vae = parts.scheduler(pipeline), parts.vae(pipeline)
    folder.mkdir()
    _write_network(folder / "unet", parts.unet(pipeline), "diffusion_pytorch_model.safetensors")
    _write_network(folder / "vae", vae, "diffusion_pytorch_model.safetensors")
    writing.save(folder / "vae" / UNFOLDED, _unfolded(pipeline), {})
    _write_network(folder / "text_encoder", parts.text_encoder(pipeline), "model.safetensors")
    (folder / "tokenizer").mkdir()
    for name, text in parts.tokenizer(pipeline).items():
        (folder / "tokenizer" / name).write_text(text, encoding="utf-8")
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "model_index.json", _index(scheduler["_class_name"]))
    _write_json(folder / FACTS, facts(pipeline))


def _unfolded(pipeline: Pipeline) -> dict[str, Tensor]:
    original, scale = pipeline.generator.autoencoder.state_dict(), pipeline.generator.scale
    kept = {name: original[name].cpu() for name in folding.CONVOLUTIONS if name in original}
    return kept | {"latent_mean": scale.mean.cpu(), "latent_std": scale.std.cpu()}


def _index(scheduler: str) -> dict[str, Any]:
    """What `StableDiffusionPipeline` is made of."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": parts.DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }


def _write_network(folder: Path, network: parts.Network, weights: str) -> None:
    folder.mkdir()
    _write_json(folder / "config.json", network.config)
    writing.save(folder / weights, network.tensors, {})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
