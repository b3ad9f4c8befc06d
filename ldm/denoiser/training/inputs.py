"""Inputs of a denoiser's training: latents paired with the conditions of their captions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.network import Network
from ldm.denoiser.training.params import TrainUNetParams
from ldm.precompute.cache import Cache
from ldm.text.embedding.embeddings import TextEmbeddings
from ldm.text.model.captions import Captions

Samples = npt.NDArray[np.int64]

_WHERE = "params.yaml: train_unet.network"


class LatentsAndCaptions:
    """Latents of one split with the embeddings of their captions.

    Conditions hold pooled features only if `takes_pooled`, since reading them takes a third of the time that reading
    the tokens takes. IntegrityError: latents and captions differ in number, or a caption was not embedded.
    """

    def __init__(
        self, latents: Cache, captions: Captions, embeddings: TextEmbeddings, scale: LatentScale, takes_pooled: bool
    ) -> None:
        if len(latents) != len(captions):
            expected = f"{len(captions)}, as there are samples in {captions.directory}"
            raise IntegrityError(str(latents.directory), f"{len(latents)} latents", expected, "run `dvc repro`")
        self.embeddings, self.scale = embeddings, scale
        self._latents, self._takes_pooled = latents, takes_pooled
        null_pooled = embeddings.null_pooled[None] if takes_pooled else None
        self.null_condition = Condition(embeddings.null_tokens[None], pooled=null_pooled)
        """The condition "no caption", of one row."""
        self._texts, self.keys, self.buckets = captions.texts, captions.keys, captions.buckets
        self._rows = [embeddings.rows(texts) for texts in captions.texts]

    def __len__(self) -> int:
        return len(self._rows)

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
        self, samples: Samples, noise: Float[Tensor, "b c h w"], mirrored: Bool[np.ndarray, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Scaled latents of samples of one bucket: the posterior sample that the noise selects; zero noise selects the
        mean. mirrored: which of the images are mirrored; None = none."""
        mean, log_variance = (self._gather(name, samples, mirrored).float() for name in ("mean", "log_variance"))
        return self.scale.normalise(Posterior(mean, log_variance).sample(noise))

    def _gather(self, name: str, samples: Samples, mirrored: Bool[np.ndarray, " b"] | None) -> Tensor:
        found = self._latents.gather(name, samples)
        if mirrored is not None and mirrored.any():
            found[torch.from_numpy(mirrored)] = self._latents.gather(f"{name}_mirrored", samples[mirrored])
        return found

    def condition(self, samples: Samples, seed: int, epochs: Samples) -> Condition:
        """The condition of one caption per sample, chosen by (seed, sample, epoch)."""
        chosen = self._choices(samples, seed, epochs)
        return self._condition([self._rows[i][place] for i, place in zip(samples.tolist(), chosen, strict=True)])

    def captions(self, samples: Samples, seed: int, epochs: Samples) -> list[str]:
        """The captions whose condition is `condition`."""
        chosen = self._choices(samples, seed, epochs)
        return [self._texts[i][place] for i, place in zip(samples.tolist(), chosen, strict=True)]

    def _choices(self, samples: Samples, seed: int, epochs: Samples) -> list[int]:
        numbers = zip(samples.tolist(), epochs.tolist(), strict=True)
        return [randomness.key(seed, "caption", i, e) % len(self._texts[i]) for i, e in numbers]

    def first_captions(self, samples: Samples) -> list[str]:
        """The first caption of each sample."""
        return [self._texts[i][0] for i in samples.tolist()]

    def first_condition(self, samples: Samples) -> Condition:
        """The condition of `first_captions`."""
        return self._condition([self._rows[i][0] for i in samples.tolist()])

    def _condition(self, rows: Sequence[int]) -> Condition:
        numbers = np.array(rows, dtype=np.int64)
        pooled = self.embeddings.pooled(numbers) if self._takes_pooled else None
        return Condition(self.embeddings.tokens(numbers), pooled=pooled)


@dataclass(frozen=True)
class Inputs:
    """All inputs of a denoiser's training, and the autoencoder that decodes its latents for pictures."""

    train: LatentsAndCaptions
    val: LatentsAndCaptions
    autoencoder: Autoencoder
    image_size_px: int
    """Side of a square with as many pixels as the largest bucket."""
    sha256: dict[str, str]
    files: list[tuple[Path, str]]
    """Every shard that a training reads, with its SHA-256."""

    @property
    def facts(self) -> dict[str, Any]:
        """Facts for the passport, which users of the trained denoiser compare with their own inputs."""
        return {
            "latent_scale": self.train.scale.to_facts(),
            "null_sha256": self.train.embeddings.passport.facts["null_sha256"],
            "context_tokens": len(self.train.embeddings.null_tokens),
            "factor": self.autoencoder.factor,
            "image_size_px": self.image_size_px,
            "latent_channels": self.train.latent_shapes[0][0],
        }


def load_inputs(latents: Path, captions: Path, embeddings: Path, autoencoder: Path, *, takes_pooled: bool) -> Inputs:
    """Read the inputs of a training, and compare their passports.

    takes_pooled: whether the network reads pooled text features.

    IntegrityError: one is missing or corrupt, or the latents were made by another autoencoder.
    """
    decoder, passport = networks.load(autoencoder, torch.device("cpu"))
    text = TextEmbeddings(embeddings)
    sha256 = {"autoencoder": passport.content_sha256, "embeddings": text.passport.content_sha256}
    # The scale of the training latents applies to both splits.
    caches = {split: Cache(latents / split, LATENTS) for split in ("train", "val")}
    scale = LatentScale.from_facts(caches["train"].passport.facts["latent_scale"])
    pairs: dict[str, LatentsAndCaptions] = {}
    files = text.files
    for split, cache in caches.items():
        artifact.check_input(cache.directory, cache.passport, "autoencoder", passport.content_sha256)
        texts = Captions(captions / split)
        sha256 |= {f"latents_{split}": cache.passport.content_sha256, f"captions_{split}": texts.sha256}
        files += [*cache.files, *texts.shards.files]
        pairs[split] = LatentsAndCaptions(cache, texts, text, scale, takes_pooled)
    area = max(height * width for _, height, width in pairs["train"].latent_shapes)
    size_px = math.isqrt(area) * decoder.factor
    return Inputs(pairs["train"], pairs["val"], decoder, size_px, sha256, files)


def check_fits(params: TrainUNetParams, inputs: Inputs) -> None:
    """ConfigError unless the network takes latents and contexts of these shapes."""
    network, shapes = params.network, inputs.train.latent_shapes
    # Buckets have at most the area of the square that `latent_size` means, and perhaps none has exactly that.
    latent_size = max(shapes[0][1:]) if len(shapes) == 1 else network.latent_size
    num_tokens, context_width = inputs.train.embeddings.null_tokens.shape
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
