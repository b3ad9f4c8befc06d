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


def measure(shards: Iterable[Mapping[str, Tensor]]) -> LatentScale:
    """Measure the scale over shards of `mean` and `log_variance` [n, c, h, w], posterior variance included.

    Sums are taken in float64 and in the order of the shards, so the result depends on nothing else.
    """
    total, total_square = torch.zeros(2, 1, dtype=torch.float64)
    count = 0
    for shard in shards:
        mean, variance = shard["mean"].double(), shard["log_variance"].double().exp()
        total = total + mean.sum((0, 2, 3))
        total_square = total_square + (mean.square() + variance).sum((0, 2, 3))
        count += mean.numel() // mean.shape[1]
    assert count, "no latents to measure"
    mean = total / count
    return LatentScale(mean, (total_square / count - mean.square()).sqrt())


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


def check_scaled(scaled: LatentScale, tolerance: float, where: str) -> None:
    """IntegrityError unless every channel of scaled latents has mean 0 and standard deviation 1 within `tolerance`."""
    wrong = [
        f"channel {channel} mean {mean:+.4f} std {std:.4f}"
        for channel, (mean, std) in enumerate(zip(scaled.mean.tolist(), scaled.std.tolist(), strict=True))
        if not (abs(mean) <= tolerance and abs(std - 1) <= tolerance)
    ]
    if wrong:
        raise IntegrityError(
            where,
            f"scaled latents have {', '.join(wrong)}",
            f"mean 0 and std 1 within {tolerance}",
            "give validation images like those of training; raise encode_latents.statistics_tolerance if they are few",
        )
