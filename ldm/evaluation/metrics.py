"""How good images are: feature spaces, distances between sets of features, agreement with captions, intervals.

A distance means nothing without its feature space, so every space has a name, which becomes part of the metric's name,
and the hash of its weights. Only Inception's would give something like an "FID".
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ldm import randomness
from ldm.core import artifact, workspace
from ldm.core.errors import IntegrityError
from ldm.text.model.clip import Clip

_Z_95 = 1.959963984540054
_INCEPTION_SIZE_PX = 299
_INCEPTION_FEATURES = 2048
_NOT_FEATURES = ("fc.", "AuxLogits.")
OWN_CLIP = "own_clip"
"""Name of the space of the run's own CLIP: its distances cannot be compared between runs."""


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 95 % confidence interval, from `count` observations."""

    value: float
    low: float
    high: float
    count: int


def share(hits: Sequence[bool]) -> Estimate:
    """How often something is true, with Wilson's score interval (Wilson 1927), which holds near 0 and 1 too."""
    n = len(hits)
    assert n, "a share of nothing"
    p, z2 = sum(hits) / n, _Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def mean(values: Float[Tensor, "b"]) -> Estimate:
    """Mean with its normal interval; of one value the interval has no width."""
    n = len(values)
    assert n, "a mean of nothing"
    centre = float(values.double().mean())
    half = _Z_95 * float(values.double().std()) / math.sqrt(n) if n > 1 else 0.0
    return Estimate(centre, centre - half, centre + half, n)


@dataclass(frozen=True)
class FeatureSpace:
    """Where images are compared: uint8 images [b, 3, h, w] -> float features [b, num_features]."""

    name: str
    """Part of the name of every metric in this space."""
    sha256: str
    """Hash of the extractor's weights."""
    num_features: int
    extract: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b f"]]


def clip_space(clip: Clip, sha256: str) -> FeatureSpace:
    """Image features of the CLIP of this run, of length 1; distances are at most about 2. The CLIP of another run has
    another space."""
    return FeatureSpace(OWN_CLIP, sha256, clip.feature_width, clip.image_features)


def inception_space(weights: Path, device: torch.device) -> FeatureSpace:
    """Pooled features of torchvision's Inception v3, whose state dict is a safetensors file.

    torchvision's network pools differently from the one of Heusel et al. 2017, so distances are comparable among each
    other, not with published FIDs. IntegrityError: the file is missing or holds another network.
    """
    from torchvision.models import Inception3

    if not weights.is_file():
        fix = workspace.left_behind(weights) or "save its state dict there by safetensors.torch.save_file"
        raise IntegrityError(str(weights), "no such file", "weights of torchvision's Inception v3", fix)
    net = Inception3(num_classes=1, aux_logits=False, transform_input=False, init_weights=False)
    net.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    tensors = artifact.open_tensors(weights)
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NOT_FEATURES)}
    expected = net.state_dict()
    wrong = sorted(found.keys() ^ expected.keys() or {n for n in found if found[n].shape != expected[n].shape})
    if wrong:
        fix = "save torchvision.models.inception_v3's state_dict"
        raise IntegrityError(str(weights), f"other tensors, {wrong[0]} first", "torchvision's Inception v3", fix)
    net.load_state_dict(found)
    net = net.eval().requires_grad_(False).to(device)

    def extract(image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        size = (_INCEPTION_SIZE_PX, _INCEPTION_SIZE_PX)
        x = functional.interpolate(image.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        return net(x / 127.5 - 1)

    return FeatureSpace("inception", artifact.sha256_file(weights), _INCEPTION_FEATURES, extract)


class _AsTheyAre(nn.Module):
    """Stands where torchmetrics expects a feature extractor, for features that are there already.

    The metrics around it must not synchronise: one process has the features of all, and the others wait elsewhere.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
        return features


def frechet_distance(a: Float[Tensor, "m f"], b: Float[Tensor, "n f"]) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features, in float64 (Heusel et al. 2017,
    equation 6). Biased upwards for few samples: compare at equal counts only."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    assert min(len(a), len(b)) > 1, f"covariances of {len(a)} and {len(b)} samples"
    distance = FrechetInceptionDistance(feature=_AsTheyAre(a.shape[1]), sync_on_compute=False)
    distance = distance.set_dtype(torch.float64)
    distance.update(a.double().cpu(), real=True)
    distance.update(b.double().cpu(), real=False)
    return float(distance.compute())


def kernel_distance(
    a: Float[Tensor, "m f"], b: Float[Tensor, "n f"], num_subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """Mean and standard deviation, over random subsets, of the unbiased squared maximum mean discrepancy with kernel
    (x y / f + 1)^3: the kernel distance of Binkowski et al. 2018, section 4. May be below 0."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(subset_size, len(a), len(b))
    assert size > 1, f"subsets of {size} samples"
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        torch.manual_seed(randomness.key(seed, "kernel distance"))
        distance = KernelInceptionDistance(
            feature=_AsTheyAre(a.shape[1]), subsets=num_subsets, subset_size=size, sync_on_compute=False
        ).set_dtype(torch.float64)
        distance.update(a.double().cpu(), real=True)
        distance.update(b.double().cpu(), real=False)
        centre, spread = distance.compute()
    return float(centre), float(spread)


def clip_score(images: Float[Tensor, "b f"], texts: Float[Tensor, "b f"]) -> tuple[Estimate, Estimate]:
    """Cosine of every image and its caption (Hessel et al. 2021, without their factor and floor), and how much it
    exceeds that of the image and another sample's caption. Features have length 1; the other sample is half the
    batch away."""
    matched = (images.double() * texts.double()).sum(1)
    shuffled = (images.double() * texts.double().roll(shuffle_distance(len(texts)), 0)).sum(1)
    return mean(matched), mean(matched - shuffled)


def shuffle_distance(count: int) -> int:
    """Offset that pairs every sample with another one's caption: half of all."""
    assert count > 1, "one caption cannot be shuffled"
    return count // 2


def found_by_image(
    queries: Float[Tensor, "b f"], gallery: Float[Tensor, "n f"], matching: Bool[Tensor, "b n"], k: int
) -> Bool[Tensor, "b"]:
    """Whether one of the gallery images that match query i is among the k nearest to it by cosine (features of length
    1)."""
    similarity = queries.double() @ gallery.double().T
    nearest_match = similarity.masked_fill(~matching, -torch.inf).amax(1)
    return (similarity > nearest_match[:, None]).sum(1) < k
