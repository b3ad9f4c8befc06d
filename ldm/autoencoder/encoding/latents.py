"""The scale that gives cached latents zero mean and unit variance, and the check that it does.

A cached latent is a Gaussian posterior. By the law of total variance, the variance of latents therefore has two parts:
the variance of the posterior means, and the mean of the posterior variances. A scale that leaves out the second part
depends on the KL weight.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.core import artifact
from ldm.core.errors import IntegrityError


def with_scale(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade the config of latents from format 1, whose scale was always measured, to format 2."""
    return {**config, "scale": {"kind": "measured"}}


NUM_STANDARD_ERRORS = 5
"""Statistics of six images are less Gaussian than those of many: of 3000 draws from the default's validation images two
had a channel more than 5 away, and none more than 5.4."""
KIND = artifact.Kind("latents", (with_scale,))
"""Kind of the artefact that holds cached latents."""


@dataclass(frozen=True)
class LatentScale:
    """Mean and standard deviation of latents per channel; normalised with them, latents have mean 0 and deviation 1.

    The scale is measured in float64, and a passport stores all digits. Read from a passport it is float32, as are the
    latents that it is applied to.
    """

    mean: Float[Tensor, "c"]
    std: Float[Tensor, "c"]

    @classmethod
    def from_facts(cls, facts: Mapping[str, list[float]]) -> Self:
        """Read from the `latent_scale` of a passport, in float32."""
        mean, std = (torch.tensor(facts[name], dtype=torch.float32) for name in ("mean", "std"))
        return cls(mean, std)

    def to_facts(self) -> dict[str, list[float]]:
        """As stored in the `latent_scale` of a passport."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def to(self, device: torch.device) -> Self:
        """A copy on another device."""
        return type(self)(self.mean.to(device), self.std.to(device))

    def normalise(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents of the autoencoder -> latents of the diffusion model."""
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def denormalise(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents of the diffusion model -> latents of the autoencoder."""
        return z * self.std[:, None, None] + self.mean[:, None, None]

    def relative_to(self, scale: Self) -> Self:
        """The scale of the same latents after they were normalised with `scale`."""
        return type(self)((self.mean - scale.mean) / scale.std, self.std / scale.std)


@dataclass(frozen=True)
class Measured:
    """The scale of some images, and how much it says of others like them."""

    scale: LatentScale
    num_images: int
    covariance: Float[Tensor, "c 2 2"]
    """Over images, of the mean of a latent and of its mean square."""

    def errors(self, num_images: int) -> LatentScale:
        """Standard errors of mean and deviation of that many other images, relative to those of these: by the central
        limit theorem for images, since the cells of one are alike, and the delta method for the deviation."""
        scale, share = self.scale, 1 / self.num_images + 1 / num_images
        of_std = torch.stack([-scale.mean / scale.std, 0.5 / scale.std], dim=1)
        of_mean = self.covariance[:, 0, 0]
        of_std = torch.einsum("ci, cij, cj -> c", of_std, self.covariance, of_std)
        # Of equal images they are 0, and by rounding a little less.
        mean, std = ((variance.clamp(min=0) * share).sqrt() / scale.std for variance in (of_mean, of_std))
        return LatentScale(mean, std)


def measure(shards: Iterable[Mapping[str, Tensor]]) -> Measured:
    """Measure the scale over shards of `mean` and `log_variance` [n, c, h, w], posterior variance included.

    Sums are taken in float64 and in the order of the shards, so the result depends on nothing else.
    """
    total, total_square, products = torch.zeros(3, 1, dtype=torch.float64)
    count = num_images = 0
    for shard in shards:
        mean, variance = shard["mean"].double(), shard["log_variance"].double().exp()
        square = mean.square() + variance
        total = total + mean.sum((0, 2, 3))
        total_square = total_square + square.sum((0, 2, 3))
        of_images = torch.stack([mean.mean((2, 3)), square.mean((2, 3))], dim=2)
        products = products + torch.einsum("nci, ncj -> cij", of_images, of_images)
        count += mean.numel() // mean.shape[1]
        num_images += len(mean)
    assert count, "no latents to measure"
    mean, mean_square = total / count, total_square / count
    averages = torch.stack([mean, mean_square], dim=1)
    covariance = (
        (products / num_images - averages[:, :, None] * averages[:, None]) * num_images / max(1, num_images - 1)
    )
    return Measured(LatentScale(mean, (mean_square - mean.square()).sqrt()), num_images, covariance)


def metrics(scale: LatentScale, scaled: LatentScale) -> dict[str, float | dict[str, float]]:
    """The scale, and mean and deviation of validation latents after scaling, as nested scalars that DVC can tabulate.

    `worst_mean` and `worst_std` are the largest distances of the scaled latents from mean 0 and deviation 1.
    """
    columns = {
        "mean": scale.mean,
        "std": scale.std,
        "val_scaled_mean": scaled.mean,
        "val_scaled_std": scaled.std,
    }
    channels = {
        f"channel_{i}": {name: float(values[i]) for name, values in columns.items()} for i in range(len(scale.mean))
    }
    worst = {"worst_mean": float(scaled.mean.abs().max()), "worst_std": float((scaled.std - 1).abs().max())}
    return worst | channels


def check_scaled(scaled: LatentScale, errors: LatentScale, tolerance: float, where: str) -> None:
    """IntegrityError unless every channel of scaled latents has mean 0 and standard deviation 1 within `tolerance` and
    a few standard errors: few images say little."""
    most = {
        "mean": tolerance + NUM_STANDARD_ERRORS * errors.mean,
        "std": tolerance + NUM_STANDARD_ERRORS * errors.std,
    }
    far = {"mean": scaled.mean, "std": scaled.std - 1}
    wrong = [
        f"channel {channel} {name} {value:+.4f} (at most {limit:.4f})"
        for name in most
        for channel, (value, limit) in enumerate(zip(far[name].tolist(), most[name].tolist(), strict=True))
        if not abs(value) <= limit
    ]
    if wrong:
        raise IntegrityError(
            where,
            f"validation latents, scaled as those of training, differ from mean 0 and std 1: {', '.join(wrong)}",
            f"a difference of {tolerance} and {NUM_STANDARD_ERRORS} standard errors at most",
            "give validation images like those of training, or raise encode_latents.statistics_tolerance",
        )
