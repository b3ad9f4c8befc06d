"""Metrics from features of images (distances between sets, agreement with captions, retrieval), and intervals."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm import randomness
from ldm.core import artifact

KIND = artifact.Kind("evaluation")
"""The artefact of stage `evaluate`."""
_Z_95 = 1.959963984540054
_NUM_KERNEL_REFERENCES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value, estimated from `count` observations, with the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float
    count: int


def proportion(hits: Sequence[bool]) -> Estimate:
    """The share of true values, with Wilson's score interval (Wilson 1927), which is also valid near 0 and 1."""
    n = len(hits)
    assert n, "a proportion of nothing"
    p, z2 = sum(hits) / n, _Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def mean_interval(values: Float[Tensor, "b"]) -> Estimate:
    """The mean with its normal interval; for a single value the interval has width 0."""
    n = len(values)
    assert n, "a mean of nothing"
    centre = float(values.double().mean())
    half = _Z_95 * float(values.double().std()) / math.sqrt(n) if n > 1 else 0.0
    return Estimate(centre, centre - half, centre + half, n)


class _PrecomputedFeatures(nn.Module):
    """Replaces torchmetrics' feature extractor where features are computed already: it returns its input.

    Metrics that use it must not synchronise processes: one process has all features, and the others wait elsewhere.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
        return features


def frechet_distance(a: Float[Tensor, "m f"], b: Float[Tensor, "n f"]) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features, in float64 (Heusel et al. 2017,
    equation 6). It is biased upwards for few samples, so compare only at equal counts."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    assert min(len(a), len(b)) > 1, f"covariances of {len(a)} and {len(b)} samples"
    distance = FrechetInceptionDistance(feature=_PrecomputedFeatures(a.shape[1]), sync_on_compute=False)
    distance = distance.set_dtype(torch.float64)
    distance.update(a.double().cpu(), real=True)
    distance.update(b.double().cpu(), real=False)
    return float(distance.compute())


def kernel_distance(
    a: Float[Tensor, "m f"], b: Float[Tensor, "n f"], num_subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """Kernel distance (Binkowski et al. 2018, section 4): mean and standard deviation, over random subsets, of the
    unbiased squared maximum mean discrepancy with kernel (x y / f + 1)^3. It may be below 0."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(subset_size, len(a), len(b))
    assert size > 1, f"subsets of {size} samples"
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        torch.manual_seed(randomness.key(seed, "kernel distance"))
        distance = KernelInceptionDistance(
            feature=_PrecomputedFeatures(a.shape[1]), subsets=num_subsets, subset_size=size, sync_on_compute=False
        ).set_dtype(torch.float64)
        distance.update(a.double().cpu(), real=True)
        distance.update(b.double().cpu(), real=False)
        centre, spread = distance.compute()
    return float(centre), float(spread)


def kernel_interval(a: Float[Tensor, "m f"], b: Float[Tensor, "n f"]) -> Estimate:
    """The unbiased squared maximum mean discrepancy of `kernel_distance` over all pairs, with an interval from the
    jackknife (Efron 1982, section 3.1) over the rows of `a`: as if each in turn were missing. `a` has three at least,
    and of `b` the first 2000 do."""
    b, count = b[:_NUM_KERNEL_REFERENCES].double().cpu(), len(a)
    a = a.double().cpu()
    within_a, between, within_b = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (a, b), (b, b)))
    own, other = within_a.sum(1) - within_a.diagonal(), between.mean(1)
    constant = (within_b.sum() - within_b.trace()) / (len(b) * (len(b) - 1))
    value = own.sum() / (count * (count - 1)) - 2 * other.mean() + constant
    rest = (own.sum() - 2 * own) / ((count - 1) * (count - 2)) - 2 * (other.sum() - other) / (count - 1) + constant
    half = _Z_95 * float(((count - 1) * (rest - rest.mean()).square().mean()).sqrt())
    return Estimate(float(value), float(value) - half, float(value) + half, count)


def cmmd(a: Float[Tensor, "m f"], b: Float[Tensor, "n f"]) -> float:
    """CMMD (Jayasumana et al. 2024): 1000 times the squared maximum mean discrepancy with the Gaussian kernel of
    deviation 10, each image compared with itself too, as in the code of its authors. Features must have length 1."""
    within_a, within_b, between = (_mean_kernel(x.double(), y.double()) for x, y in ((a, a), (b, b), (a, b)))
    return 1000 * (within_a + within_b - 2 * between)


def _mean_kernel(x: Float[Tensor, "m f"], y: Float[Tensor, "n f"]) -> float:
    """Mean of exp(-|x - y|^2 / 200) over all pairs, a few rows at a time."""
    return float(torch.cat([(-torch.cdist(rows, y).square() / 200).exp().mean(1) for rows in x.split(1024)]).mean())


def clip_score(images: Float[Tensor, "b f"], texts: Float[Tensor, "b f"]) -> tuple[Estimate, Estimate]:
    """Mean cosine between images and their captions (Hessel et al. 2021, without their factor and floor), and the mean
    margin over the cosine between an image and the caption of another sample.

    Features must have length 1. The other sample is half the batch away.
    """
    matched = (images.double() * texts.double()).sum(1)
    shuffled = (images.double() * texts.double().roll(shuffle_offset(len(texts)), 0)).sum(1)
    return mean_interval(matched), mean_interval(matched - shuffled)


def shuffle_offset(count: int) -> int:
    """Offset at which every sample is paired with the caption of another: half the number of samples."""
    assert count > 1, "one caption cannot be shuffled"
    return count // 2


def is_retrieved(
    queries: Float[Tensor, "b f"], gallery: Float[Tensor, "n f"], matching: Bool[Tensor, "b n"], k: int
) -> Bool[Tensor, "b"]:
    """Whether, for each query, a matching image is among the k nearest of the gallery by cosine. Features must have
    length 1."""
    similarity = queries.double() @ gallery.double().T
    nearest_match = similarity.masked_fill(~matching, -torch.inf).amax(1)
    return (similarity > nearest_match[:, None]).sum(1) < k
