"""What training a denoiser needs besides its network: latents paired with captions, batches, validation, pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm import images, randomness
from ldm.autoencoder import network
from ldm.autoencoder.latents import KIND as LATENTS
from ldm.autoencoder.network import Autoencoder, LatentScale, Posterior, to_image
from ldm.core import artifact, workspace
from ldm.core.errors import ConfigError, IntegrityError
from ldm.denoiser.diffusion import DenoisingObjective, add_noise, denoiser, training_times
from ldm.denoiser.training_params import TrainUNetParams
from ldm.denoiser.unet import KIND as UNET
from ldm.precompute.cache import Cache
from ldm.text.captions import Captions
from ldm.text.embeddings import TextEmbeddings
from ldm.training.loop import Accelerator, rows_per_pass

Samples = npt.NDArray[np.int64]

_WHERE = "params.yaml: train_unet.network"
PICTURE_TIMES = (0.25, 0.5, 0.75, 1.0)
NOISIEST = 0.05
"""Share of the training times for whose end validation reports an error of its own."""


class LatentsAndCaptions:
    """Latents of one split with the embeddings of their captions.

    IntegrityError: latents and captions differ in number, or a caption was not embedded.
    """

    def __init__(self, latents: Cache, captions: Captions, embeddings: TextEmbeddings, scale: LatentScale) -> None:
        if len(latents) != len(captions):
            expected = f"{len(captions)}, as there are samples in {captions.directory}"
            raise IntegrityError(str(latents.directory), f"{len(latents)} latents", expected, "run `dvc repro`")
        self.embeddings, self.scale = embeddings, scale
        self._latents = latents
        self._texts, self.keys = captions.texts, captions.keys
        self._rows = [embeddings.rows(texts) for texts in captions.texts]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        channels, height, width = self._latents.gather("mean", np.zeros(1, dtype=np.int64)).shape[1:]
        return channels, height, width

    def latents(self, samples: Samples, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Scaled latents: the posterior's sample that the noise picks; zero noise picks its mean."""
        mean, log_variance = (self._latents.gather(name, samples).float() for name in ("mean", "log_variance"))
        return self.scale.normalise(Posterior(mean, log_variance).sample(noise))

    def context(self, samples: Samples, seed: int, epochs: Samples) -> Float[Tensor, "b n d"]:
        """Token states of one caption per sample, chosen by (seed, sample, epoch)."""
        numbers = zip(samples.tolist(), epochs.tolist(), strict=True)
        rows = [self._rows[i][randomness.key(seed, "caption", i, e) % len(self._rows[i])] for i, e in numbers]
        return self.embeddings.tokens(np.array(rows, dtype=np.int64))

    def first_captions(self, num: int) -> list[str]:
        """The first caption of each of the first samples."""
        return [texts[0] for texts in self._texts[:num]]

    def first_context(self, num: int) -> Float[Tensor, "b n d"]:
        """Token states of `first_captions`."""
        return self.embeddings.tokens(np.array([rows[0] for rows in self._rows[:num]], dtype=np.int64))


@dataclass(frozen=True)
class Inputs:
    """All that a denoiser is trained on, and the autoencoder that shows what it makes."""

    train: LatentsAndCaptions
    val: LatentsAndCaptions
    autoencoder: Autoencoder
    image_size_px: int
    sha256: dict[str, str]

    @property
    def facts(self) -> dict[str, Any]:
        """What readers of the trained denoiser compare with their own inputs."""
        channels, height, _ = self.train.latent_shape
        return {
            "latent_scale": self.train.scale.to_facts(),
            "null_sha256": self.train.embeddings.passport.facts["null_sha256"],
            "context_tokens": len(self.train.embeddings.null_tokens),
            "factor": self.image_size_px // height,
            "image_size_px": self.image_size_px,
            "latent_channels": channels,
        }


def load(latents: Path, captions: Path, embeddings: Path, autoencoder: Path) -> Inputs:
    """Read the inputs and compare their passports.

    IntegrityError: one is missing or corrupt, or the latents were made by another autoencoder.
    """
    decoder, passport = network.load(autoencoder, torch.device("cpu"))
    text = TextEmbeddings(embeddings)
    sha256 = {"autoencoder": passport.content_sha256, "embeddings": text.passport.content_sha256}
    caches = {split: Cache(latents / split, LATENTS) for split in ("train", "val")}
    scale = LatentScale.from_facts(caches["train"].passport.facts["latent_scale"])
    pairs: dict[str, LatentsAndCaptions] = {}
    for split, cache in caches.items():
        artifact.check_input(cache.directory, cache.passport, "autoencoder", passport.content_sha256)
        texts = Captions(captions / split)
        sha256 |= {f"latents_{split}": cache.passport.content_sha256, f"captions_{split}": texts.sha256}
        pairs[split] = LatentsAndCaptions(cache, texts, text, scale)
    size_px = pairs["train"].latent_shape[1] * decoder.factor
    return Inputs(pairs["train"], pairs["val"], decoder, size_px, sha256)


def check_fits(params: TrainUNetParams, inputs: Inputs) -> None:
    """ConfigError unless the network takes latents and contexts of these shapes."""
    network, (channels, height, width) = params.network, inputs.train.latent_shape
    num_tokens, context_width = inputs.train.embeddings.null_tokens.shape
    wanted = [
        ("latent_channels", network.latent_channels, channels, "the latents"),
        ("latent_size", network.latent_size, max(height, width), "the latents"),
        ("context_width", network.context_width, context_width, "the embeddings"),
    ]
    if network.num_context_layers:
        least = max(network.max_context_tokens, num_tokens)
        wanted.append(("max_context_tokens", network.max_context_tokens, least, "the embeddings"))
    errors = [
        ConfigError(f"{_WHERE}.{key}", f"found {found}", f"{expected}, as {source} have", f"set {key}: {expected}")
        for key, found, expected, source in wanted
        if found != expected
    ]
    if errors:
        raise ConfigError.many(errors)


def load_weights(unet: nn.Module, params: TrainUNetParams, directory: Path) -> str:
    """Start from a trained denoiser; returns its SHA-256.

    IntegrityError: it is missing or corrupt. ConfigError: it has another network.
    """
    if not directory.is_dir():
        fix = workspace.left_behind(directory) or "correct train_unet.init_from, or bring it back by `dvc pull`"
        raise IntegrityError(str(directory), "no such folder", "a trained UNet", fix)
    passport, tensors = artifact.read(directory, UNET)
    ours, theirs = params.network.model_dump(mode="json"), passport.config["network"]
    if ours != theirs:
        fix = "set it so, or train from the start with init_from: null"
        errors = [
            ConfigError(f"{_WHERE}.{key}", f"found {value}", f"{theirs.get(key)}, as in {directory}", fix)
            for key, value in ours.items()
            if value != theirs.get(key)
        ]
        raise ConfigError.many(errors)
    with artifact.fitting(directory):
        unet.load_state_dict(tensors)
    return passport.content_sha256


class LatentBatches:
    """Latents, noise, times and contexts of any step, drawn for the global batch and then cut to `rows`."""

    def __init__(self, pairs: LatentsAndCaptions, params: TrainUNetParams) -> None:
        self._pairs, self._params = pairs, params
        self._noise_shape = (2, params.training.batch_size, *pairs.latent_shape)

    def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
        training = self._params.training
        positions = self._positions(step)[rows]
        samples = randomness.order(positions, len(self._pairs), training.seed)
        both = torch.randn(self._noise_shape, generator=randomness.generator(training.seed, "noise", step))[:, rows]
        context = self._pairs.context(samples, training.seed, positions // len(self._pairs))
        dropped = self._uniform("dropout", step)[rows] < self._params.diffusion.caption_dropout
        context[dropped] = self._pairs.embeddings.null_tokens
        return {
            "z0": self._pairs.latents(samples, both[0]),
            "noise": both[1],
            "t": self._times(step)[rows],
            "context": context,
            "dropped": dropped,
        }

    def keys(self, step: int) -> list[str]:
        """Keys of the samples of a step's global batch."""
        samples = randomness.order(self._positions(step), len(self._pairs), self._params.training.seed)
        return [self._pairs.keys[sample] for sample in samples.tolist()]

    def _positions(self, step: int) -> Samples:
        size = self._params.training.batch_size
        return step * size + np.arange(size, dtype=np.int64)

    def _times(self, step: int) -> Float[Tensor, " b"]:
        u = self._uniform("time", step)
        if self._params.diffusion.stratified_times:
            u = (torch.arange(len(u)) + u) / len(u)
        return training_times(u, self._params.diffusion)

    def _uniform(self, purpose: str, step: int) -> Float[Tensor, " b"]:
        training = self._params.training
        return torch.rand(training.batch_size, generator=randomness.generator(training.seed, purpose, step))


class Validation:
    """Loss at fixed samples, captions, noise and times, divided over the processes."""

    def __init__(self, pairs: LatentsAndCaptions, params: TrainUNetParams, accelerator: Accelerator) -> None:
        self._params, self._accelerator = params, accelerator
        num, seed = min(params.num_validation_samples, len(pairs)), params.training.seed
        samples = np.arange(num, dtype=np.int64)
        # Every sample has one time; neighbours in the split, which may be alike, get times that are far apart.
        slices = torch.from_numpy(randomness.order(samples, num, randomness.key(seed, "validation time")))
        u = (slices + 0.5) / num
        self._buckets = (u * params.num_validation_buckets).long()
        # The noisiest twentieth, from which sampling starts: at least one sample.
        self._noisiest = slices >= num - max(1, round(num * NOISIEST))
        posterior_noise, noise = torch.randn(
            2, num, *pairs.latent_shape, generator=randomness.generator(seed, "validation noise")
        )
        self._batch = {
            "z0": pairs.latents(samples, posterior_noise),
            "noise": noise,
            "t": training_times(u, params.diffusion),
            "context": pairs.first_context(num),
        }

    def __call__(self, objective: nn.Module) -> dict[str, float]:
        """`loss`, `mse`, `mse_bucket_K`, slice K of the training times, 1 the least noise, and `mse_noisiest`, their
        last twentieth, where sampling starts."""
        assert isinstance(objective, DenoisingObjective)
        device, num_buckets = self._accelerator.device, self._params.num_validation_buckets
        total = torch.zeros(2 + 2 * (num_buckets + 1), dtype=torch.float64)
        num_rows = rows_per_pass(self._params.training, self._accelerator)
        starts = range(0, len(self._buckets), num_rows)
        for start in starts[self._accelerator.process_index :: self._accelerator.num_processes]:
            rows = slice(start, start + num_rows)
            weighted, mse = objective.losses({name: value[rows].to(device) for name, value in self._batch.items()})
            member = torch.nn.functional.one_hot(self._buckets[rows], num_buckets)
            member = torch.cat([member, self._noisiest[rows, None]], dim=1).double()
            by_bucket = mse.double().cpu() @ member
            total += torch.cat([torch.stack([weighted.sum(), mse.sum()]).double().cpu(), by_bucket, member.sum(0)])
        total = torch.as_tensor(self._accelerator.reduce(total.to(device))).cpu()
        sums, counts = total[2:].chunk(2)
        *means, noisiest = (sums / counts.clamp(min=1)).tolist()
        loss, mse = (total[:2] / len(self._buckets)).tolist()
        buckets = {f"mse_bucket_{i}": value for i, value in enumerate(means, 1)}
        return {"loss": loss, "mse": mse, **buckets, "mse_noisiest": noisiest}


class Pictures:
    """What the denoiser makes of validation latents in one step, at fixed noise levels, as images."""

    def __init__(
        self, pairs: LatentsAndCaptions, autoencoder: Autoencoder, params: TrainUNetParams, device: torch.device
    ) -> None:
        num = min(params.num_pictures, len(pairs))
        noise = torch.randn(num, *pairs.latent_shape, generator=randomness.generator(params.training.seed, "pictures"))
        z0 = pairs.latents(np.arange(num, dtype=np.int64), torch.zeros_like(noise))
        self._z0, self._noise, self._context = z0.to(device), noise.to(device), pairs.first_context(num).to(device)
        self._captions = pairs.first_captions(num)
        self._autoencoder, self._scale = autoencoder.to(device).eval(), pairs.scale.to(device)

    @torch.no_grad()
    def __call__(self, objective: nn.Module, path: Path) -> None:
        """One row per sample: the latent itself, then one-step predictions from more and more noise."""
        assert isinstance(objective, DenoisingObjective)
        schedule = objective.schedule
        denoise = denoiser(objective.unet, schedule, objective.params.prediction, self._context)
        columns = [self._z0]
        for time in PICTURE_TIMES:
            t = torch.full((len(self._z0),), time, device=self._z0.device)
            columns.append(denoise(add_noise(schedule, self._z0, self._noise, t), t))
        decoded = [to_image(self._autoencoder.decode(self._scale.denormalise(z))).cpu() for z in columns]
        labels = [label for caption in self._captions for label in (caption, *(f"t = {t}" for t in PICTURE_TIMES))]
        images.grid(torch.stack(decoded, dim=1).flatten(0, 1), len(columns), labels).save(path)


def summary(training: Sequence[Mapping[str, float]], validation: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of a finished training: the last validation, and the share of captions that were dropped."""
    rates = [row["caption_dropout"] for row in training if not math.isnan(row["caption_dropout"])]
    last = {f"validation_{name}": round(value, 6) for name, value in validation[-1].items() if name != "step"}
    return {**last, "caption_dropout_observed": round(sum(rates) / len(rates), 4)}
