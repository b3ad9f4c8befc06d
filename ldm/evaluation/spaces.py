"""Feature spaces, in which images are compared.

A distance means nothing without its feature space. Every space therefore has a name, which becomes part of the names of
its metrics, and the hash of its weights. Numbers can be put beside published ones in two of them: the Frechet distance
in `inception` is FID, and the maximum mean discrepancy in `clip`, with OpenAI's weights, is CMMD; both only for as many
images, of the same size, against the same real ones.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.core.errors import IntegrityError, MachineError
from ldm.evaluation.params import ClipSpaceParams, FeatureSpaceParams, InceptionSpaceParams, ShapesSpaceParams
from ldm.exchange import files
from ldm.text import reference_clip
from ldm.text.model.clip import Clip

OWN_CLIP = "own_clip"
"""Name of the feature space of the run's own CLIP; its distances cannot be compared between runs."""
CLIP_SCORE, CMMD = "CLIP score (own clip), own minus other caption", "CMMD (clip)"
"""Labels in tables, pictures and pages."""
DISTANCES = {"frechet": "Frechet distance", "kid": "kernel distance"}
"""Distances in every space: how the names of their metrics begin -> their labels."""
_POOLED = "2048"
"""torch-fidelity's name of the features after the last pooling, of which FID is the distance."""


@dataclass(frozen=True)
class FeatureSpace:
    """A feature space: maps uint8 images [b, 3, h, w] to float features [b, f]."""

    name: str
    """Part of the name of every metric in this space."""
    sha256: str
    """Hash of the extractor's weights."""
    extract: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b f"]]
    has_cmmd: bool = False
    """Whether CMMD is defined in it."""


def label(distance: str, space: str) -> str:
    """Label of one of `DISTANCES` in a space."""
    return f"{DISTANCES[distance]} ({space.replace('_', ' ')})"


def own_clip(clip: Clip, sha256: str) -> FeatureSpace:
    """The space of image features of this run's own CLIP. Features have length 1, so distances are at most about 2. The
    CLIP of another run has another space."""
    return FeatureSpace(OWN_CLIP, sha256, clip.image_features)


def build(params: FeatureSpaceParams, device: torch.device) -> FeatureSpace:
    """Build the space that the params describe.

    Raises:
        ConfigError: open_clip has no such architecture.
        IntegrityError: its weights are missing, damaged, more than tensors, or of another network.
        MachineError: the package that computes it is missing.
    """
    match params:
        case ShapesSpaceParams():
            from ldm.oracles import shapes_extractor

            return FeatureSpace(params.kind, shapes_extractor.WEIGHTS_SHA256, shapes_extractor.load().to(device))
        case InceptionSpaceParams():
            weights = files.read(Path(params.weights))
            return FeatureSpace(params.kind, weights.sha256, _inception(weights, device))
        case ClipSpaceParams():
            weights = files.read(Path(params.weights))
            model = reference_clip.build(params.architecture, weights, params.quick_gelu).to(device)
            return FeatureSpace(params.kind, weights.sha256, model.image_features, has_cmmd=True)


def _inception(
    weights: files.Source, device: torch.device
) -> Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b f"]]:
    """Pooled features of torch-fidelity's Inception, which resizes as TensorFlow did."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        fix = 'pip install "ldm[perceptual]"'
        raise MachineError("evaluate.feature_spaces", "no package torch-fidelity", "it", fix) from error
    # The constructor would unpickle the file without a check, or download it; it gets what was read safely instead.
    copy = io.BytesIO()
    torch.save(weights.tensors, copy)
    copy.seek(0)
    try:
        net = FeatureExtractorInceptionV3("inception", [_POOLED], feature_extractor_weights_path=copy).to(device)
    except RuntimeError as error:
        found = " ".join(str(error).split())[:200]
        fix = "fetch weights-inception-2015-12-05-6726825d.pth from the releases of torch-fidelity"
        raise IntegrityError(str(weights.path), f"other tensors ({found})", "torch-fidelity's Inception", fix) from None
    return lambda image: net(image)[0]
