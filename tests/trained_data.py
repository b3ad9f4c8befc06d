"""A folder like a repository after training: a corpus of shapes and tiny untrained artefacts that fit each other."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.model.kl import KLAutoencoder
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.core import artifact
from ldm.corpora import kinds, preparation
from ldm.corpora.params import PrepareParams
from ldm.denoiser.model.params import UNetParams
from ldm.denoiser.model.unet import UNet
from ldm.precompute.cache import CacheWriter
from ldm.text.model import clip
from ldm.text.model.params import ClipParams
from tests.import_closure import ROOT
from tests.kinds import KINDS
from tests.stage_scripts import run

CLIP = {
    "embed_dim": 8,
    "vision": {"image_size_px": 16, "patch_size_px": 8, "width": 16, "layers": 1, "head_width": 8},
    "text": {
        "width": 16,
        "heads": 2,
        "layers": 1,
        "context_length": 40,
        "num_merges": 200,
        "embedding_std": 0.02,
        "causal": False,
    },
}
AUTOENCODER = {
    "kind": "kl",
    "patch_px": 8,
    "channels": [8],
    "num_res_blocks": 1,
    "latent_channels": 4,
    "middle_attention": False,
    "quant_conv": True,
    "norm_groups": 4,
}
UNET = {
    "kind": "unet",
    "latent_channels": 4,
    "latent_size": 8,
    "channels": [8, 8],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "num_transformer_layers": 1,
    "head_width": 8,
    "linear_projection": False,
    "context_width": 16,
    "norm_groups": 4,
    "num_context_layers": 0,
    "max_context_tokens": 40,
    "position_embedding": False,
    "gradient_checkpointing": False,
}
CORPUS = {
    "kind": "shapes",
    "num_train": 30,
    "num_val": 20,
    "num_reworded": 7,
    "num_unseen": 12,
    "num_held_out": 8,
    "object_count_weights": [0.5, 0.5],
    "relation_caption_fraction": 1.0,
    "sentence_forms": "varied",
    "num_captions_per_image": 1,
    "seed": 0,
}
PREPARE = {
    "corpus": CORPUS,
    "captions": "corpus",
    "image_size_px": 64,
    "num_samples_per_shard": 16,
    "max_seconds_per_sample": 20,
    "max_reject_fraction": 0.0,
    "num_examples": 1,
}
DRAWING: dict[str, Any] = {"num_steps": 2, "time_shift": 1.0, "precision": "fp32"}
"""Changes of `sample.drawing`."""
CHANGES: dict[str, dict[str, Any]] = {
    "machine": {"threads": 1, "attention": "math"},
    "embed_text": {"batch_size": 64},
    "sample": {
        "batch_size": 4,
        "num_prompts_held_out": 6,
        "num_prompts_unseen": 5,
        "num_prompts_reworded": 4,
        "num_prompts_seen": 8,
        "sweep": {"guidance_scales": [1, 2.5], "num_prompts": 4},
        "num_samples_per_shard": 3,
        "num_grid_columns": 2,
        "num_grid_rows": 2,
    },
    "evaluate": {
        "num_reference_images": 20,
        "num_kid_subsets": 2,
        "kid_subset_size": 5,
        "num_pairs": 2,
        "batch_size": 4,
        "num_samples_per_unit": 5,
    },
}


def make(root: Path, caption_dropout: float = 0.1) -> None:
    """Fill a folder."""
    with contextlib.chdir(root):
        params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        for section, values in CHANGES.items():
            params[section] |= values
        params["sample"]["drawing"] |= DRAWING
        write_params(root, params)
        shutil.copy(ROOT / "paths.yaml", root)
        prepare = PrepareParams.model_validate(PREPARE)
        data = root / "data"
        (data / "prepare").mkdir(parents=True)
        pairs = kinds.pairs(prepare, root)
        preparation.prepare(pairs, data / "images", data / "captions", data / "prepare", prepare, num_workers=0)
        clip.build(ClipParams.model_validate(CLIP), 0).save(data / "clip", {}, {})
        run("embed_text")
        write_networks(data, caption_dropout, params["train_unet"]["diffusion"])


def write_networks(data: Path, caption_dropout: float, diffusion: dict[str, Any]) -> None:
    torch.manual_seed(0)
    autoencoder = KLAutoencoder(KLAutoencoderParams.model_validate(AUTOENCODER))
    unet = UNet(UNetParams.model_validate(UNET))
    for parameter in unet.parameters():  # the last layers of a fresh network are zero, which would hide the prompt
        torch.nn.init.normal_(parameter, std=0.3)
    decoder = artifact.write(data / "autoencoder", KINDS["autoencoder"], AUTOENCODER, autoencoder.state_dict(), {}, {})
    writer = CacheWriter(data / "latents" / "train", LATENTS)
    writer.write_shard(0, {"mean": torch.zeros(1, 4, 8, 8)})
    scale = {"latent_scale": {"mean": [0.1, 0.0, 0.0, 0.0], "std": [1.0, 2.0, 1.0, 1.0]}}
    latents = writer.finish(1, {}, {"autoencoder": decoder.content_sha256}, scale)
    inputs = {
        "autoencoder": decoder.content_sha256,
        "embeddings": artifact.read_passport(data / "embeddings", KINDS["embeddings"]).content_sha256,
        "latents_train": latents.content_sha256,
    }
    settings = {"network": UNET, "diffusion": diffusion | {"caption_dropout": caption_dropout}}
    facts = scale | {"caption_dropout": caption_dropout}
    artifact.write(data / "unet", KINDS["unet"], settings, unet.state_dict(), inputs, facts)


def write_worse(data: Path, directory: Path, **traits: Any) -> None:
    """A smaller denoiser of the same latents and embeddings as `data/unet`, for autoguidance.

    traits: `inputs`, `facts` and `diffusion` that differ.
    """
    of = artifact.read_passport(data / "unet", KINDS["unet"])
    torch.manual_seed(1)
    smaller = UNET | {"channels": [8, 8], "attention_levels": [False, False]}
    unet = UNet(UNetParams.model_validate(smaller))
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    settings = {"network": smaller, "diffusion": of.config["diffusion"] | traits.get("diffusion", {})}
    inputs, facts = of.inputs | traits.get("inputs", {}), of.facts | traits.get("facts", {})
    artifact.write(directory, KINDS["unet"], settings, unet.state_dict(), inputs, facts)


def write_params(root: Path, params: dict[str, Any]) -> None:
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)


def change(root: Path, section: str, **values: Any) -> None:
    """Set keys of one section of params.yaml."""
    params = YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
    params[section] |= values
    write_params(root, params)
