"""Statistics of cached latents: the scale that makes them zero-mean and unit-variance, and the check that it does.

Latents are Gaussian posteriors, so their variance has two parts: that of the means over positions, and the mean
posterior variance (law of total variance). Leaving out the second is what makes a scale depend on the KL weight.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.core import artifact
from ldm.core.errors import IntegrityError

KIND = artifact.Kind("latents")
"""Kind of the artefact that holds them."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per channel, float64."""

    mean: Float[Tensor, "c"]
    std: Float[Tensor, "c"]

    def relative_to(self, scale: "Statistics") -> "Statistics":
        """The statistics of the same latents after `scale` was subtracted and divided out."""
        return Statistics((self.mean - scale.mean) / scale.std, self.std / scale.std)

    def to_facts(self) -> dict[str, list[float]]:
        """As JSON: {"mean": [...], "std": [...]}."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def measure(shards: Iterable[Mapping[str, Tensor]]) -> Statistics:
    """Per-channel statistics over shards of `mean` and `log_variance` [n, c, h, w], posterior variance included.

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
    return Statistics(mean, (total_square / count - mean.square()).sqrt())


def metrics(scale: Statistics, scaled: Statistics) -> dict[str, float | dict[str, float]]:
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


def check_scaled(scaled: Statistics, tolerance: float, where: str) -> None:
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
