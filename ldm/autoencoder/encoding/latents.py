"""The scale of cached latents, which makes them zero-mean and unit-variance, and the check that it does.

Latents are Gaussian posteriors, so their variance has two parts: that of the means over positions, and the mean
posterior variance (law of total variance). Leaving out the second is what makes a scale depend on the KL weight.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.core import artifact
from ldm.core.errors import IntegrityError

KIND = artifact.Kind("latents")
"""Kind of the artefact that holds them."""


@dataclass(frozen=True)
class LatentScale:
    """Mean and standard deviation of latents per channel: the diffusion model sees latents of mean 0, deviation 1.

    It is measured in float64, and a passport keeps all digits; read from one it is float32, as are the latents that it
    is applied to.
    """

    mean: Float[Tensor, "c"]
    std: Float[Tensor, "c"]

    @classmethod
    def from_facts(cls, facts: Mapping[str, list[float]]) -> Self:
        """In float32, from the `latent_scale` of a passport."""
        mean, std = (torch.tensor(facts[name], dtype=torch.float32) for name in ("mean", "std"))
        return cls(mean, std)

    def to_facts(self) -> dict[str, list[float]]:
        """For the `latent_scale` of a passport."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(self.mean.to(device), self.std.to(device))

    def normalise(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents of the autoencoder -> latents of the diffusion model."""
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def denormalise(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents of the diffusion model -> latents of the autoencoder."""
        return z * self.std[:, None, None] + self.mean[:, None, None]

    def relative_to(self, scale: Self) -> Self:
        """The scale that the same latents have after `scale` normalised them."""
        return type(self)((self.mean - scale.mean) / scale.std, self.std / scale.std)


def measure(shards: Iterable[Mapping[str, Tensor]]) -> LatentScale:
    """The scale over shards of `mean` and `log_variance` [n, c, h, w], posterior variance included.

    Sums are float64 and in the order of the shards, so they depend on nothing else.
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
    """The scale and what it makes of other latents as nested scalars, the only values that DVC tabulates.

    `worst_mean` and `worst_std` are the largest distances of scaled latents from mean 0 and deviation 1.
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
