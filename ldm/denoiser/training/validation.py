"""Quality of a denoiser during its training: validation loss, and pictures of its predictions from noisy latents."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ldm import randomness
from ldm.autoencoder.model.network import Autoencoder, to_image
from ldm.compute import process
from ldm.core import images
from ldm.denoiser.model.diffusion import DenoisingObjective, add_noise, denoiser, training_times
from ldm.denoiser.training.bound import VariationalBound
from ldm.denoiser.training.inputs import LatentsAndCaptions
from ldm.denoiser.training.params import TrainUNetParams
from ldm.training.loop import Accelerator, rows_per_pass

PICTURE_TIMES = (0.25, 0.5, 0.75, 1.0)
NOISIEST = 0.05
"""Share of the training times, the noisiest ones, for which validation reports a separate error."""


class Validation:
    """Loss at fixed samples, captions, noise and times; the processes share the work."""

    def __init__(self, pairs: LatentsAndCaptions, params: TrainUNetParams, accelerator: Accelerator) -> None:
        self._params, self._accelerator = params, accelerator
        num, seed = min(params.num_validation_samples, len(pairs)), params.training.seed
        samples = np.arange(num, dtype=np.int64)
        # Each sample has one time. Neighbours in the split, which may be similar, get times that are far apart.
        slices = torch.from_numpy(randomness.order(samples, num, randomness.key(seed, "validation time")))
        u = (slices + 0.5) / num
        self._buckets = (u * params.num_validation_buckets).long()
        # The noisiest twentieth of the times, where sampling starts; at least one sample.
        self._noisiest = slices >= num - max(1, round(num * NOISIEST))
        posterior_noise, noise = torch.randn(
            2, num, *pairs.latent_shape, generator=randomness.generator(seed, "validation noise")
        )
        self._batch = {
            "z0": pairs.latents(samples, posterior_noise),
            "noise": noise,
            "t": training_times(u, params.diffusion),
            **pairs.first_condition(num).parts,
        }
        self._bound = VariationalBound(params.diffusion, self._batch["z0"], slices)

    def __call__(self, objective: nn.Module) -> dict[str, float]:
        """`loss`, `mse`, `mse_bucket_K` of slice K of the training times (1 has the least noise), and `mse_noisiest` of
        their last twentieth, where sampling starts; `bits_per_dimension` and its terms, of a `VariationalBound`."""
        assert isinstance(objective, DenoisingObjective)
        device, num_buckets = self._accelerator.device, self._params.num_validation_buckets
        total = torch.zeros(3 + 2 * (num_buckets + 1), dtype=torch.float64)
        num_rows = rows_per_pass(self._params.training, self._accelerator)
        for start in process.share_of(range(0, len(self._buckets), num_rows), self._accelerator):
            rows = slice(start, start + num_rows)
            weighted, mse = objective.losses({name: value[rows].to(device) for name, value in self._batch.items()})
            # Sums and counts per bucket; the noisiest times form one more bucket, which overlaps.
            member = torch.nn.functional.one_hot(self._buckets[rows], num_buckets)
            member = torch.cat([member, self._noisiest[rows, None]], dim=1).double()
            by_bucket = mse.double().cpu() @ member
            bits = self._bound.weights[rows] @ mse.double().cpu()
            sums = torch.stack([weighted.sum().double().cpu(), mse.sum().double().cpu(), bits])
            total += torch.cat([sums, by_bucket, member.sum(0)])
        total = torch.as_tensor(self._accelerator.reduce(total.to(device))).cpu()
        sums, counts = total[3:].chunk(2)
        *means, noisiest = (sums / counts.clamp(min=1)).tolist()
        loss, mse = (total[:2] / len(self._buckets)).tolist()
        buckets = {f"mse_bucket_{i}": value for i, value in enumerate(means, 1)}
        bits = self._bound.terms(float(total[2]))
        return {"loss": loss, "mse": mse, **buckets, "mse_noisiest": noisiest, **bits}


class Pictures:
    """One-step predictions of the denoiser for validation latents at fixed noise levels, as images."""

    def __init__(
        self, pairs: LatentsAndCaptions, autoencoder: Autoencoder, params: TrainUNetParams, device: torch.device
    ) -> None:
        num = min(params.num_pictures, len(pairs))
        noise = torch.randn(num, *pairs.latent_shape, generator=randomness.generator(params.training.seed, "pictures"))
        z0 = pairs.latents(np.arange(num, dtype=np.int64), torch.zeros_like(noise))
        self._z0, self._noise, self._condition = z0.to(device), noise.to(device), pairs.first_condition(num).to(device)
        self._captions = pairs.first_captions(num)
        self._autoencoder, self._scale = autoencoder.to(device).eval(), pairs.scale.to(device)

    @torch.no_grad()
    def __call__(self, objective: nn.Module, path: Path) -> None:
        """Save one row per sample: the decoded latent, then one-step predictions from increasing noise."""
        assert isinstance(objective, DenoisingObjective)
        schedule = objective.schedule
        denoise = denoiser(objective.unet, schedule, objective.params.prediction, self._condition)
        columns = [self._z0]
        for time in PICTURE_TIMES:
            t = torch.full((len(self._z0),), time, device=self._z0.device)
            columns.append(denoise(add_noise(schedule, self._z0, self._noise, t), t))
        decoded = [to_image(self._autoencoder.decode(self._scale.denormalise(z))).cpu() for z in columns]
        labels = [label for caption in self._captions for label in (caption, *(f"t = {t}" for t in PICTURE_TIMES))]
        images.grid(torch.stack(decoded, dim=1).flatten(0, 1), len(columns), labels).save(path)


def summary(training: Sequence[Mapping[str, float]], validation: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of a finished training: its last validation, and the observed share of dropped captions."""
    rates = [row["caption_dropout"] for row in training if not math.isnan(row["caption_dropout"])]
    last = {f"validation_{name}": round(value, 6) for name, value in validation[-1].items() if name != "step"}
    return {**last, "caption_dropout_observed": round(sum(rates) / len(rates), 4)}
