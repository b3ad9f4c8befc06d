"""Inputs of a denoiser's training: latents paired with the conditions of their captions."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ldm import randomness
from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.autoencoder.encoding.latents import LatentScale
from ldm.autoencoder.model import networks
from ldm.autoencoder.model.network import Autoencoder, Posterior
from ldm.compute import attention
from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.params import Precision
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.network import Network
from ldm.denoiser.training.params import TrainUNetParams
from ldm.denoiser.training.texts import OnlineTexts, StoredTexts, Texts
from ldm.precompute.cache import Cache
from ldm.text.embedding.embeddings import TextEmbeddings
from ldm.text.model import encoders
from ldm.text.model.captions import Captions

Samples = npt.NDArray[np.int64]

_WHERE = "params.yaml: train_unet.network"
_CPU = torch.device("cpu")


class LatentsAndCaptions:
    """Latents of one split with its captions. IntegrityError: they differ in number."""

    def __init__(self, latents: Cache, captions: Captions, text: Texts, scale: LatentScale) -> None:
        if len(latents) != len(captions):
            expected = f"{len(captions)}, as there are samples in {captions.directory}"
            raise IntegrityError(str(latents.directory), f"{len(latents)} latents", expected, "run `dvc repro`")
        self.text, self.scale, self.keys, self.buckets = text, scale, captions.keys, captions.buckets
        self._latents, self._captions = latents, captions

    def __len__(self) -> int:
        return len(self._captions)

    def scaled(self, scale: LatentScale) -> Self:
        """The same latents on another scale."""
        return type(self)(self._latents, self._captions, self.text, scale)

    @property
    def has_mirrored(self) -> bool:
        """Whether there are latents of mirrored images."""
        return bool(self._latents.passport.config.get("mirrored", False))

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """Channels, height and width of the latents of every bucket."""
        first = np.zeros(1, dtype=np.int64)
        return [self.latent_shape(self.buckets.samples(bucket, first)) for bucket in range(len(self.buckets))]

    def latent_shape(self, samples: Samples) -> tuple[int, int, int]:
        """Channels, height and width of the latents of some samples of one bucket."""
        channels, height, width = self._latents.gather("mean", samples[:1]).shape[1:]
        return channels, height, width

    def latents(
        self, samples: Samples, noise: Float[Tensor, "b c h w"] | None, mirrored: Bool[np.ndarray, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Scaled latents of samples of one bucket: the posterior sample that the noise selects; None selects the mean.
        mirrored: which of the images are mirrored; None = none."""
        mean = self._gather("mean", samples, mirrored).float()
        if noise is None:
            return self.scale.normalise(mean)
        log_variance = self._gather("log_variance", samples, mirrored).float()
        return self.scale.normalise(Posterior(mean, log_variance).sample(noise))

    def _gather(self, name: str, samples: Samples, mirrored: Bool[np.ndarray, " b"] | None) -> Tensor:
        found = self._latents.gather(name, samples)
        if mirrored is not None and mirrored.any():
            found[torch.from_numpy(mirrored)] = self._latents.gather(f"{name}_mirrored", samples[mirrored])
        return found

    def captions(self, samples: Samples, seed: int, epochs: Samples) -> list[str]:
        """One caption per sample, chosen by (seed, sample, epoch)."""
        own = ((i, epoch, self._captions.texts[i]) for i, epoch in zip(samples.tolist(), epochs.tolist(), strict=True))
        return [texts[randomness.key(seed, "caption", i, epoch) % len(texts)] for i, epoch, texts in own]

    def first_captions(self, samples: Samples) -> list[str]:
        """The first caption of each sample."""
        return [texts[0] for texts in self._captions.texts.at(samples.tolist())]

    def first_condition(self, samples: Samples) -> Condition:
        """The condition of `first_captions`."""
        return self.text.condition(self.first_captions(samples))


@dataclass(frozen=True)
class Inputs:
    """All inputs of a denoiser's training, and the autoencoder that decodes its latents for pictures."""

    train: LatentsAndCaptions
    val: LatentsAndCaptions
    embeddings: TextEmbeddings
    autoencoder: Autoencoder
    autoencoder_source: str | None
    """SHA-256 of the file that the autoencoder was brought as; None = it was trained here."""
    image_size_px: int
    """Side of a square with as many pixels as the largest bucket."""
    sha256: dict[str, str]
    files: list[tuple[Path, str]]
    """Every shard that a training reads, with its SHA-256."""

    def scaled(self, scale: LatentScale) -> Self:
        """The same inputs, with latents on another scale."""
        return replace(self, train=self.train.scaled(scale), val=self.val.scaled(scale))

    @property
    def settings_sha256(self) -> dict[str, str]:
        """Hashes of what a training depends on besides the contents of its inputs: how latents are scaled, and how
        captions are encoded."""
        train_split = self.embeddings.passport.config["train_split"]
        settings = {"latent_scale": self.train.scale.to_facts(), "train_split": train_split}
        return {name: artifact.sha256_json(value) for name, value in settings.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """Facts for the passport, which users of the trained denoiser compare with their own inputs."""
        return {
            "latent_scale": self.train.scale.to_facts(),
            "null_sha256": self.embeddings.passport.facts["null_sha256"],
            "context_tokens": self.embeddings.num_tokens,
            "factor": self.autoencoder.factor,
            "image_size_px": self.image_size_px,
            "latent_channels": self.train.latent_shapes[0][0],
        }


def load_inputs(
    latents: Path,
    captions: Path,
    embeddings: Path,
    autoencoder: Path,
    clip: Path,
    *,
    takes_pooled: bool,
    device: torch.device = _CPU,
) -> Inputs:
    """Read the inputs of a training, and compare their passports. The CLIP is read only if it encodes captions in the
    training step.

    takes_pooled: whether the network reads pooled text features. device: where the CLIP computes.

    IntegrityError: one is missing or corrupt, the latents were made by another autoencoder, the embeddings by another
    CLIP, or a caption was not embedded.
    """
    decoder, passport = networks.load(autoencoder, _CPU)
    stored = TextEmbeddings(embeddings)
    sha256 = {"autoencoder": passport.content_sha256, "embeddings": stored.passport.content_sha256}
    # The scale of the training latents applies to both splits.
    caches = {split: Cache(latents / split, LATENTS) for split in ("train", "val")}
    scale = LatentScale.from_facts(caches["train"].passport.facts["latent_scale"])
    pairs: dict[str, LatentsAndCaptions] = {}
    files = stored.files
    for split, cache in caches.items():
        artifact.check_input(cache.directory, cache.passport, "autoencoder", passport.content_sha256)
        told = Captions(captions / split)
        sha256 |= {f"latents_{split}": cache.passport.content_sha256, f"captions_{split}": told.sha256}
        texts: Texts = StoredTexts(stored, takes_pooled)
        if split == "train" and stored.is_online:
            texts = _online(stored, clip, told, takes_pooled, device)
        else:
            stored.check_holds(split, told)
        files += [*cache.files, *told.shards.files]
        pairs[split] = LatentsAndCaptions(cache, told, texts, scale)
    area = max(height * width for _, height, width in pairs["train"].latent_shapes)
    size_px = math.isqrt(area) * decoder.factor
    brought = passport.inputs.get("source")
    return Inputs(pairs["train"], pairs["val"], stored, decoder, brought, size_px, sha256, files)


def _online(
    embeddings: TextEmbeddings, clip: Path, captions: Captions, takes_pooled: bool, device: torch.device
) -> OnlineTexts:
    """The encoder of the embeddings for the training captions that they were made for."""
    # Their longest caption may have decided how many tokens are kept.
    artifact.check_input(embeddings.directory, embeddings.passport, "captions_train", captions.sha256)
    precision: Precision = embeddings.passport.config["train_split"]["precision"]
    return OnlineTexts(embeddings.encoder(*encoders.load(clip), device, precision), takes_pooled)


def check_fits(params: TrainUNetParams, inputs: Inputs) -> None:
    """ConfigError unless the network takes latents and contexts of these shapes."""
    network, shapes = params.network, inputs.train.latent_shapes
    # Buckets have at most the area of the square that `latent_size` means, and perhaps none has exactly that.
    latent_size = max(shapes[0][1:]) if len(shapes) == 1 else network.latent_size
    _, num_tokens, context_width = inputs.embeddings.null["tokens"].shape
    wanted = [
        ("latent_channels", network.latent_channels, shapes[0][0], "the latents"),
        ("latent_size", network.latent_size, latent_size, "the latents"),
        ("context_width", network.context_width, context_width, "the embeddings"),
    ]
    if network.context_limit is not None:
        least = max(network.context_limit, num_tokens)
        wanted.append(("max_context_tokens", network.context_limit, least, "the embeddings"))
    errors = [
        ConfigError(f"{_WHERE}.{key}", f"found {found}", f"{expected}, as {source} have", f"set {key}: {expected}")
        for key, found, expected, source in wanted
        if found != expected
    ]
    if params.mirroring is not None and not inputs.train.has_mirrored:
        expected, fix = "null: no mirrored image is encoded", "set encode_latents.mirrored: true, or this to null"
        errors.append(ConfigError("params.yaml: train_unet.mirroring", "found words", expected, fix))
    if errors:
        raise ConfigError.many(errors)


def prove_attention(unet: Network, inputs: Inputs, params: TrainUNetParams, device: torch.device) -> None:
    """MachineError unless the attention backend can train the network, and decode latents for its pictures."""
    precision = params.training.precision
    sizes = {(height, width) for split in (inputs.train, inputs.val) for _, height, width in split.latent_shapes}
    of_unet = [shape for size in sizes for shape in unet.attention_shapes(*size)]
    of_decoder = [shape for size in sizes for shape in inputs.autoencoder.attention_shapes(*size)]
    attention.prove(device, of_unet, precision, trains=True)
    for each in (precision, "fp32"):  # pictures during training, and the last one
        attention.prove(device, [*of_unet, *of_decoder], each, trains=False)
