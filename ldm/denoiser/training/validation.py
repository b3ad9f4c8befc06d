"""Quality of a denoiser during its training: validation loss, and pictures of its predictions from noisy latents."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm import randomness
from ldm.autoencoder.model.network import Autoencoder, to_image
from ldm.compute import process
from ldm.core import images
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import Denoiser, DenoisingObjective, Schedule, add_noise, denoiser, training_times
from ldm.denoiser.training.bound import VariationalBound
from ldm.denoiser.training.inputs import LatentsAndCaptions
from ldm.denoiser.training.params import TrainUNetParams
from ldm.training.batches import Accelerator, rows_per_pass

PICTURE_TIMES = (0.25, 0.5, 0.75, 1.0)
NOISIEST = 0.05
"""Share of the training times, the noisiest ones, for which validation reports a separate error."""


class Validation:
    """Loss at fixed samples, captions, noise and times; the processes share the work."""

    def __init__(self, pairs: LatentsAndCaptions, params: TrainUNetParams, accelerator: Accelerator) -> None:
        self._params, self._accelerator = params, accelerator
        num, seed = min(params.num_validation_samples, len(pairs)), params.training.seed
        # Each sample has one time. Neighbours in the split, which may be similar, get times that are far apart.
        places = np.arange(num, dtype=np.int64)
        slices = torch.from_numpy(randomness.order(places, num, randomness.key(seed, "validation time")))
        u = (slices + 0.5) / num
        self._buckets = (u * params.num_validation_buckets).long()
        # The noisiest twentieth of the times, where sampling starts; at least one sample.
        self._noisiest = slices >= num - max(1, round(num * NOISIEST))
        self._batches: list[tuple[slice, dict[str, Tensor]]] = []
        """Rows of the samples, and their inputs, for the samples of each bucket."""
        start, generator = 0, randomness.generator(seed, "validation noise")
        for samples in pairs.buckets.batches(num, num):
            rows = slice(start, start := start + len(samples))
            posterior_noise, noise = torch.randn(2, len(samples), *pairs.latent_shape(samples), generator=generator)
            z0 = pairs.latents(samples, posterior_noise if params.latents == "sample" else None)
            batch = {"z0": z0, "noise": noise}
            batch |= {"t": training_times(u[rows], params.diffusion), **pairs.first_condition(samples).parts}
            self._batches.append((rows, batch))
        values = torch.cat([batch["z0"].flatten() for _, batch in self._batches])
        self._bound = VariationalBound(params.diffusion, values, slices)

    def __call__(self, objective: nn.Module) -> dict[str, float]:
        """`loss`, `mse`, `mse_bucket_K` of each slice K of the training times that has samples (1 has the least noise),
        and `mse_noisiest` of their last twentieth, where sampling starts; `bits_per_dimension` and its terms, of a
        `VariationalBound`."""
        assert isinstance(objective, DenoisingObjective)
        device, num_buckets = self._accelerator.device, self._params.num_validation_buckets
        total = torch.zeros(3 + 2 * (num_buckets + 1), dtype=torch.float64)
        for (rows, batch), is_counted in process.equal_shares(self._parts(), self._accelerator):
            weighted, mse = objective.losses({name: value.to(device) for name, value in batch.items()})
            # Sums and counts per bucket; the noisiest times form one more bucket, which overlaps.
            member = torch.nn.functional.one_hot(self._buckets[rows], num_buckets)
            member = torch.cat([member, self._noisiest[rows, None]], dim=1).double()
            by_bucket = mse.double().cpu() @ member
            bits = self._bound.weights[rows] @ mse.double().cpu()
            sums = torch.stack([weighted.sum().double().cpu(), mse.sum().double().cpu(), bits])
            total += torch.cat([sums, by_bucket, member.sum(0)]) if is_counted else 0
        total = torch.as_tensor(self._accelerator.reduce(total.to(device))).cpu()
        sums, counts = total[3:].chunk(2)
        *means, noisiest = (sums / counts.clamp(min=1)).tolist()
        loss, mse = (total[:2] / len(self._buckets)).tolist()
        buckets = {f"mse_bucket_{i}": value for i, value in enumerate(means, 1) if counts[i - 1]}
        bits = self._bound.terms(float(total[2]))
        return {"loss": loss, "mse": mse, **buckets, "mse_noisiest": noisiest, **bits}

    def _parts(self) -> list[tuple[slice, dict[str, Tensor]]]:
        """As many rows as one pass takes, and their inputs: the units that processes share."""
        num_rows = rows_per_pass(self._params.training, self._accelerator)
        return [
            (
                slice(rows.start + start, min(rows.start + start + num_rows, rows.stop)),
                {name: value[start : start + num_rows] for name, value in batch.items()},
            )
            for rows, batch in self._batches
            for start in range(0, rows.stop - rows.start, num_rows)
        ]


class Pictures:
    """One-step predictions of the denoiser for validation latents at fixed noise levels, and images that it draws for
    their captions."""

    def __init__(
        self, pairs: LatentsAndCaptions, autoencoder: Autoencoder, params: TrainUNetParams, device: torch.device
    ) -> None:
        num, generator = params.num_pictures, randomness.generator(params.training.seed, "pictures")
        self._rows: list[tuple[Tensor, Tensor, Condition, Condition]] = []
        """Latents, noise, condition, and condition without a caption, of the samples of each bucket."""
        self._captions: list[str] = []
        for samples in pairs.buckets.batches(num, num):
            noise = torch.randn(len(samples), *pairs.latent_shape(samples), generator=generator)
            z0 = pairs.latents(samples, None)
            captions = pairs.first_captions(samples)
            none = Condition.of_batch(pairs.text.parts(captions, torch.ones(len(captions), dtype=torch.bool)))
            condition = pairs.text.condition(captions)
            self._rows.append((z0.to(device), noise.to(device), condition.to(device), none.to(device)))
            self._captions += captions
        self._autoencoder, self._scale = autoencoder.to(device).eval(), pairs.scale.to(device)
        self._num_steps = params.num_picture_steps
        self._guidance_scale = params.picture_guidance_scale if params.diffusion.caption_dropout else 1.0

    @torch.no_grad()
    def __call__(self, objective: nn.Module) -> images.Image.Image:
        """One row per sample: the decoded latent, then one-step predictions from increasing noise."""
        return self._drawn(objective, draws=False)

    @torch.no_grad()
    def while_training(self, objective: nn.Module) -> images.Image.Image:
        """The same, with one more column: what the denoiser draws from pure noise for the caption of the row."""
        return self._drawn(objective, draws=True)

    def _drawn(self, objective: nn.Module, draws: bool) -> images.Image.Image:
        assert isinstance(objective, DenoisingObjective)
        decoded = [image for part in self._rows for image in self._decoded(objective, *part, draws=draws)]
        columns = [*(f"t = {t}" for t in PICTURE_TIMES), *([f"drawn in {self._num_steps} steps"] if draws else [])]
        labels = [label for caption in self._captions for label in (caption, *columns)]
        return images.grid(decoded, 1 + len(columns), labels)

    def _decoded(
        self,
        objective: DenoisingObjective,
        z0: Tensor,
        noise: Tensor,
        condition: Condition,
        none: Condition,
        *,
        draws: bool,
    ) -> Tensor:
        """The images of samples of one bucket, uint8 [b, 3, h, w], one after the other."""
        schedule = objective.schedule
        denoise = denoiser(objective.unet, schedule, objective.params.prediction, condition)
        columns = [z0]
        for time in PICTURE_TIMES:
            t = torch.full((len(z0),), time, device=z0.device)
            columns.append(denoise(add_noise(schedule, z0, noise, t), t))
        if draws:
            without = denoiser(objective.unet, schedule, objective.params.prediction, none)
            guided = denoise if self._guidance_scale == 1 else _guided(denoise, without, self._guidance_scale)
            columns.append(drawn(guided, schedule, noise, self._num_steps))
        decoded = [to_image(self._autoencoder.decode(self._scale.denormalise(z))).cpu() for z in columns]
        return torch.stack(decoded, dim=1).flatten(0, 1)


def _guided(denoise: Denoiser, without: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022)."""

    def guided(z: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(without(z, t), denoise(z, t), scale)

    return guided


def drawn(
    denoise: Denoiser, schedule: Schedule, noise: Float[Tensor, "b c h w"], num_steps: int
) -> Float[Tensor, "b c h w"]:
    """Clean latents from pure noise by DDIM without fresh noise (Song et al. 2021, equation 12), at equally spaced
    times. It stands here, since samplers are no part of a training: an edit of one must not train again."""
    times = torch.linspace(1, 0, num_steps + 1, device=noise.device)[:, None]
    z = schedule.sigma(times[0]) * noise
    for now, then in pairwise(times):
        z0 = denoise(z, now.expand(len(z)))
        rest = (z - schedule.alpha(now) * z0) / schedule.sigma(now)
        z = schedule.alpha(then) * z0 + schedule.sigma(then) * rest
    return z


def summary(training: Sequence[Mapping[str, float]], validation: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of a finished training: its last validation, and the observed share of dropped captions."""
    rates = [row["caption_dropout"] for row in training if not math.isnan(row["caption_dropout"])]
    last = {f"validation_{name}": round(value, 6) for name, value in validation[-1].items() if name != "step"}
    return {**last, "caption_dropout_observed": round(sum(rates) / len(rates), 4)}
