"""Feature spaces, in which images are compared.

A distance means nothing without its feature space. Every space therefore has a name, which becomes part of the names of
its metrics, and the hash of its weights. Only Inception features give something like an "FID".
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ldm.core import artifact, workspace
from ldm.core.errors import IntegrityError
from ldm.evaluation.params import FeatureSpaceParams, InceptionSpaceParams, PixelsSpaceParams, ShapesSpaceParams
from ldm.text.model.clip import Clip

OWN_CLIP = "own_clip"
"""Name of the feature space of the run's own CLIP; its distances cannot be compared between runs."""
_INCEPTION_SIZE_PX = 299
_NOT_FEATURES = ("fc.", "AuxLogits.")


@dataclass(frozen=True)
class FeatureSpace:
    """A feature space: maps uint8 images [b, 3, h, w] to float features [b, f]."""

    name: str
    """Part of the name of every metric in this space."""
    sha256: str
    """Hash of the extractor's weights; "" if it has none."""
    extract: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b f"]]


def own_clip(clip: Clip, sha256: str) -> FeatureSpace:
    """The space of image features of this run's own CLIP. Features have length 1, so distances are at most about 2. The
    CLIP of another run has another space."""
    return FeatureSpace(OWN_CLIP, sha256, clip.image_features)


def build(params: FeatureSpaceParams | PixelsSpaceParams, device: torch.device) -> FeatureSpace:
    """Build the space that the params describe. IntegrityError: its weights are missing or of another network."""
    match params:
        case PixelsSpaceParams(size_px=size_px):
            return FeatureSpace(params.kind, "", lambda image: _shrunk(image, size_px))
        case ShapesSpaceParams():
            from ldm.oracles import shapes_extractor

            return FeatureSpace(params.kind, shapes_extractor.WEIGHTS_SHA256, shapes_extractor.load().to(device))
        case InceptionSpaceParams():
            weights = Path(params.weights)
            extract = _inception(weights, device)
            return FeatureSpace(params.kind, artifact.sha256_file(weights), extract)


def _shrunk(image: UInt8[Tensor, "b 3 h w"], size_px: int) -> Float[Tensor, "b f"]:
    """Mean colours of size_px x size_px fields, in 0..1, on a scale on which black and white have distance 1."""
    fields = functional.adaptive_avg_pool2d(image.float() / 255, size_px).flatten(1)
    return fields / fields.shape[1] ** 0.5


def _inception(weights: Path, device: torch.device) -> Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b f"]]:
    """Pooled features of torchvision's Inception v3. weights: a safetensors file with its state dict.

    torchvision's network pools differently from that of Heusel et al. 2017, so these distances can be compared with
    each other, but not with published FIDs.
    """
    from torchvision.models import Inception3

    if not weights.is_file():
        fix = workspace.left_behind(weights) or "save its state dict there by safetensors.torch.save_file"
        raise IntegrityError(str(weights), "no such file", "weights of torchvision's Inception v3", fix)
    net = Inception3(num_classes=1, aux_logits=False, transform_input=False, init_weights=False)
    net.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    tensors = artifact.open_tensors(weights)
    used = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NOT_FEATURES)}
    expected = net.state_dict()
    wrong = sorted(used.keys() ^ expected.keys() or {name for name in used if used[name].shape != expected[name].shape})
    if wrong:
        fix = "save torchvision.models.inception_v3's state_dict"
        raise IntegrityError(str(weights), f"other tensors, {wrong[0]} first", "torchvision's Inception v3", fix)
    net.load_state_dict(used)
    net = net.eval().requires_grad_(False).to(device)

    def extract(image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        size = (_INCEPTION_SIZE_PX, _INCEPTION_SIZE_PX)
        x = functional.interpolate(image.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        return net(x / 127.5 - 1)

    return extract
