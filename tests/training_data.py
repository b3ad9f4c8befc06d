"""Tiny inputs of the two trainings: images and captions, latents and embeddings with passports that fit each other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm import randomness
from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.model.kl import KLAutoencoder
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.autoencoder.training.params import TrainAutoencoderParams
from ldm.core import artifact, images, shards
from ldm.denoiser.training.inputs import Inputs, load_inputs
from ldm.denoiser.training.params import TrainUNetParams
from ldm.precompute.cache import CacheWriter, Lookup
from ldm.text.embedding.embeddings import INDEX, NULL, WORDS
from ldm.text.embedding.embeddings import KIND as EMBEDDINGS
from tests.kinds import KINDS
from tests.toy_training import DEFAULTS

NUM_SAMPLES = {"train": 13, "val": 6}
SIZE_PX, CHANNELS, LATENT_SIZE, NUM_TOKENS, WIDTH = 16, 4, 4, 5, 8

PLAIN: dict[str, Any] = {
    "channels_last": False,
    "num_batches_ahead": None,
    "background_saves": None,
    "deterministic": True,
}
"""What section machine says of a training's threads and of a GPU's kernels."""
KEPT = PLAIN | {"keep_finished_states": False, "num_kept_runs": 3, "max_run_age_days": 30, "trackers": []}
"""Likewise, and what it says of runs."""
AUTOENCODER: dict[str, Any] = {
    "source": {
        "kind": "train",
        "network": {
            "kind": "kl",
            "patch_px": 2,
            "channels": [8, 16],
            "num_res_blocks": 1,
            "latent_channels": CHANNELS,
            "middle_attention": True,
            "quant_conv": True,
            "norm_groups": 4,
        },
        "reconstruction": {
            "error": "l1",
            "kl_weight": 1e-4,
            "learned_log_variance": True,
            "gradient_weight": 1.0,
            "num_gradient_scales": 2,
            "perceptual": None,
            "adversarial": None,
            "equivariance": None,
            "turned_colours": 0.0,
            "latent_noise": 0.5,
        },
        "training": DEFAULTS | {"num_steps": 6, "validate_every_steps": 4, "num_accumulation_steps": 2},
    },
    "num_validation_samples": 4,
    "num_pictures": 3,
}
UNET: dict[str, Any] = {
    "network": {
        "kind": "unet",
        "latent_channels": CHANNELS,
        "latent_size": LATENT_SIZE,
        "channels": [16, 32],
        "num_res_blocks": 1,
        "attention_levels": [False, True],
        "num_transformer_layers": 1,
        "head_width": 8,
        "linear_projection": True,
        "context_width": WIDTH,
        "norm_groups": 4,
        "num_context_layers": 1,
        "max_context_tokens": 8,
        "position_embedding": True,
        "gradient_checkpointing": False,
    },
    "diffusion": {
        "schedule": "flow",
        "prediction": "flow",
        "loss_weighting": {"kind": "uniform"},
        "time_sampling": {"kind": "logit_normal", "mean": 0.0, "std": 1.0},
        "time_shift": 1.0,
        "stratified_times": True,
        "offset_noise": 0.0,
        "caption_dropout": 0.25,
    },
    "latents": "sample",
    "training": DEFAULTS | {"num_steps": 6, "validate_every_steps": 4, "learning_rate": 1e-3},
    "averages": None,
    "mirroring": None,
    "init_from": None,
    "lora": None,
    "num_validation_samples": 5,
    "num_validation_buckets": 2,
    "num_pictures": 2,
    "num_picture_steps": 2,
    "picture_guidance_scale": 1.5,
}


def autoencoder_params(**changes: object) -> TrainAutoencoderParams:
    return TrainAutoencoderParams.model_validate_json(json.dumps(AUTOENCODER | changes), strict=True)


def unet_params(**changes: object) -> TrainUNetParams:
    """`training`, `diffusion` and `network` are changed key by key."""
    merged = {k: UNET[k] | v if isinstance(v, dict) and UNET[k] else v for k, v in changes.items()}
    return TrainUNetParams.model_validate_json(json.dumps(UNET | merged), strict=True)


def texts(split: str, i: int) -> list[str]:
    return [f"{split} {i} {way}" for way in "abc"[: 1 + i % 3]]


def write_images(directory: Path, side_px: int = SIZE_PX) -> None:
    """Random squares, 4 x 4 in each image."""
    side = side_px // 4
    for split, num in NUM_SAMPLES.items():
        coarse = np.random.default_rng(num).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
        pixels = coarse.repeat(side, 1).repeat(side, 2)
        samples = ((f"{i:03d}", {"png": images.encode_png(p), "json": b"{}"}) for i, p in enumerate(pixels))
        shards.write(directory / split, samples, 5)


def write_captions(directory: Path) -> None:
    for split, num in NUM_SAMPLES.items():
        parts = [json.dumps({"captions": texts(split, i), "claims": [None] * (1 + i % 3)}) for i in range(num)]
        shards.write(directory / split, ((f"{i:03d}", {"json": p.encode()}) for i, p in enumerate(parts)), 5)


def write_autoencoder(directory: Path) -> str:
    params = KLAutoencoderParams.model_validate(AUTOENCODER["source"]["network"])
    torch.manual_seed(0)
    config, tensors = params.model_dump(mode="json"), KLAutoencoder(params).state_dict()
    return artifact.write(directory, KINDS["autoencoder"], config, tensors, {}, {}).content_sha256


def write_latents(directory: Path, autoencoder: str) -> None:
    for split, num in NUM_SAMPLES.items():
        mean = torch.randn(num, CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=randomness.generator(0, split))
        writer = CacheWriter(directory / split, LATENTS)
        writer.write_shard(0, {"mean": (3 * mean + 1).half(), "log_variance": torch.full_like(mean, -4).half()})
        scale = {"mean": [1.0] * CHANNELS, "std": [3.0] * CHANNELS}
        writer.finish(1, {}, {"autoencoder": autoencoder}, {"latent_scale": scale})


def write_embeddings(directory: Path) -> None:
    captions = sorted({text for split, num in NUM_SAMPLES.items() for i in range(num) for text in texts(split, i)})
    tokens = torch.randn(len(captions), NUM_TOKENS, WIDTH, generator=randomness.generator(0, "tokens")).half()
    writer = CacheWriter(directory, EMBEDDINGS)
    writer.write_shard(0, {"tokens": tokens, "pooled": tokens[:, 0]})
    null = {"tokens": torch.full((NUM_TOKENS, WIDTH), 7.0).half(), "pooled": torch.zeros(WIDTH).half()}
    artifact.write_tensors(directory / NULL, null)
    artifact.write_tensors(directory / INDEX, Lookup.columns(Lookup.digests(captions)))
    artifact.write_json(directory / WORDS, ["train", "val"])
    facts = {"null_sha256": artifact.sha256_tensors(null), "context_tokens": NUM_TOKENS}
    config = {"padding": "attended", "train_split": {"kind": "stored"}}
    writer.finish(1, config, {}, facts, files=[INDEX, NULL, WORDS])


def write_all(root: Path) -> None:
    """`images`, `captions`, `autoencoder`, `latents` and `embeddings` under `root`."""
    write_images(root / "images")
    write_captions(root / "captions")
    write_latents(root / "latents", write_autoencoder(root / "autoencoder"))
    write_embeddings(root / "embeddings")


def load_all(root: Path) -> Inputs:
    """What a training of the UNet reads, of files that are written under `root`."""
    write_all(root)
    folders = (root / name for name in ("latents", "captions", "embeddings", "autoencoder", "clip"))
    return load_inputs(*folders, takes_pooled=False)
