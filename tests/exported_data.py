"""Untrained models in Stable Diffusion's topology at reduced width, in a folder like a repository after training."""

from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.model.kl import KLAutoencoder
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.core import artifact
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet
from ldm.precompute.cache import CacheWriter, Lookup
from ldm.text.embedding.embeddings import INDEX, NULL, WORDS, TextEncoder
from ldm.text.model import clip, encoders
from ldm.text.model.encoder import TextModel
from ldm.text.model.params import ClipParams
from ldm.text.training.params import TransformersParams
from ldm.text.training.pretrained_tower import from_transformers
from ldm.tools.pipeline import Pipeline
from tests.import_closure import ROOT
from tests.kinds import KINDS
from tests.repository import params_of

NUM_TOKENS = 24
SD_1: dict[str, Any] = {
    "train_autoencoder.source.network": {
        "patch_px": 1,
        "channels": [8, 8, 16, 16],
        "num_res_blocks": 2,
        "latent_channels": 4,
        "middle_attention": True,
        "norm_groups": 4,
    },
    "train_clip.source.network.text": {
        "width": 16,
        "heads": 2,
        "layers": 3,
        "context_length": NUM_TOKENS + 8,
        "num_merges": 200,
    },
    "train_clip.source.network.vision": {"width": 16, "layers": 1, "head_width": 8},
    "train_unet.network": {
        "latent_channels": 4,
        "latent_size": 8,
        "channels": [8, 16, 32, 32],
        "num_res_blocks": 2,
        "attention_levels": [True, True, True, False],
        "head_width": [4, 8, 16, 16],
        "linear_projection": False,
        "context_width": 16,
        "norm_groups": 4,
        "num_context_layers": 0,
        "position_embedding": False,
    },
    "train_unet.diffusion": {"schedule": "scaled_linear", "prediction": "eps"},
    "sample.drawing": {
        "sampler": {"kind": "euler"},
        "num_steps": 5,
        "spacing": "trailing",
        "time_shift": 1.0,
        "precision": "fp32",
    },
    "machine": {"threads": 1, "attention": "math"},
}
"""Changes of the default: four levels, of which all but the lowest attend, in Stable Diffusion 1's shape."""
SD_2: dict[str, Any] = {
    **SD_1,
    "train_unet.network": SD_1["train_unet.network"] | {"linear_projection": True},
    "train_unet.diffusion": {"schedule": "zero_terminal_snr", "prediction": "v"},
    "embed_text": {"layer": "penultimate"},
}
FLOW: dict[str, Any] = {
    **SD_1,
    "train_unet.diffusion": {"schedule": "flow", "prediction": "flow"},
    "sample.drawing": SD_1["sample.drawing"] | {"spacing": "uniform", "time_shift": 2.0},
}


def made(root: Path, recipe: str, changes: dict[str, Any], num_tokens: int = NUM_TOKENS) -> Pipeline:
    """Untrained artefacts of a recipe with `changes` (section -> values) in an empty folder, and their pipeline.
    num_tokens: of a prompt."""
    params: dict[str, Any] = YAML(typ="safe").load(params_of(recipe))
    for place, values in changes.items():
        section = params
        for key in place.split("."):
            section = section[key]
        section |= values
    root.mkdir(exist_ok=True)
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    (root / "paths.yaml").write_bytes((ROOT / "paths.yaml").read_bytes())
    data = root / "data"
    if params["train_clip"]["text_encoder"]["kind"] == "clip":
        model = clip.build(ClipParams.model_validate(params["train_clip"]["source"]["network"]), 0).eval()
        encoder = model.save(data / "clip", {}, {})
    else:
        model, _ = from_transformers(TransformersParams.model_validate(params["train_clip"]["text_encoder"]))
        encoder = model.save(data / "clip" / encoders.FOLDER, {})
    embeddings = _write_embeddings(data / "embeddings", model, encoder, params["embed_text"], num_tokens)
    _write_networks(data, params, embeddings)
    return Pipeline.load(root, "cpu")


def _write_embeddings(
    folder: Path, model: TextModel, encoder: artifact.Passport, params: dict[str, Any], num_tokens: int
) -> str:
    sha256 = encoder.content_sha256
    encode = TextEncoder(model, params["layer"], params["norm"], num_tokens, False, torch.device("cpu"))
    null = {name: part[0].half() for name, part in encode([""]).items()}
    writer = CacheWriter(folder, KINDS["embeddings"])
    writer.write_shard(0, encode.in_batches(["stored"], 1))
    artifact.write_tensors(folder / NULL, null)
    artifact.write_tensors(folder / INDEX, Lookup.columns(Lookup.digests(["stored"])))
    artifact.write_json(folder / WORDS, ["stored"])
    facts = {
        "encoder_sha256": sha256,
        "layer": params["layer"],
        "norm": params["norm"],
        "context_tokens": num_tokens,
        "context_width": model.context_width,
        "null_sha256": artifact.sha256_tensors(null),
    }
    return writer.finish(1, params, {encoder.kind: sha256}, facts, files=[INDEX, NULL, WORDS]).content_sha256


def _write_networks(data: Path, params: dict[str, Any], embeddings: str) -> None:
    torch.manual_seed(0)
    of_decoder, network = params["train_autoencoder"]["source"]["network"], params["train_unet"]["network"]
    autoencoder = KLAutoencoder(KLAutoencoderParams.model_validate(of_decoder))
    unet = UNet(UNetParams.model_validate(network))
    for parameter in (
        *unet.parameters(),
        *autoencoder.parameters(),
    ):  # fresh networks end in zeros, which hide the rest
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3)
    decoder = artifact.write(data / "autoencoder", KINDS["autoencoder"], of_decoder, autoencoder.state_dict(), {}, {})
    channels = of_decoder["latent_channels"]
    mean, std = [0.3, -0.2, 0.1, 0.7], [0.5, 1.5, 2.0, 0.9]
    scale = {"mean": (mean * channels)[:channels], "std": (std * channels)[:channels]}
    writer = CacheWriter(data / "latents" / "train", LATENTS)
    writer.write_shard(0, {"mean": torch.zeros(1, channels, 8, 8)})
    latents = writer.finish(1, {}, {"autoencoder": decoder.content_sha256}, {"latent_scale": scale})
    inputs = {"autoencoder": decoder.content_sha256, "embeddings": embeddings, "latents_train": latents.content_sha256}
    config = {"network": network, "diffusion": params["train_unet"]["diffusion"]}
    facts = {"latent_scale": scale, "caption_dropout": 0.1}
    artifact.write(data / "unet", KINDS["unet"], config, unet.state_dict(), inputs, facts)
