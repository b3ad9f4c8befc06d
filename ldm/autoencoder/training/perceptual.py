"""LPIPS, a distance of images that agrees with people better than errors of pixels (Zhang et al. 2018)."""

import warnings
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.autoencoder.training.loss_params import PerceptualParams
from ldm.core.errors import IntegrityError, MachineError
from ldm.exchange import files

_TORCHVISION = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}
_MIN_SIDE_PX = {"vgg": 16, "alex": 31, "squeeze": 17}


class Lpips(nn.Module):
    """The distance that the package `lpips` computes, with a backbone from a file. Its weights are frozen, and it stays
    in evaluation mode: its dropout was for its own training."""

    def __init__(self, params: PerceptualParams) -> None:
        """IntegrityError: the file is missing or holds other weights. MachineError: the package is not installed."""
        super().__init__()
        source = files.read(Path(params.weights))
        self._distance = _build(params.backbone)
        _load(self._distance, source, _TORCHVISION[params.backbone])
        self.sha256 = source.sha256
        """Hash of the file of the backbone."""
        self.min_side_px = _MIN_SIDE_PX[params.backbone]
        """Least side of an image that the backbone takes."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Distance of each pair of signals in -1..1; 0 for equal ones."""
        return self._distance(x, y).flatten().float()


def _build(backbone: str) -> nn.Module:
    """The package's network; its backbone is random, its weighting trained."""
    try:
        from lpips import LPIPS
    except ImportError as error:
        fix = 'pip install "ldm[perceptual]"'
        raise MachineError("reconstruction.perceptual", "no package lpips", "lpips", fix) from error
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "The parameter 'pretrained'", UserWarning)
        warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
        return LPIPS(net=backbone, pnet_rand=True, verbose=False)


def _load(distance: nn.Module, source: files.Source, network: str) -> None:
    """Fill the backbone: the package keeps torchvision's layers under their numbers, in slices."""
    given = source.tensors
    own = {
        f"features.{name.split('.', 2)[2]}": tensor
        for name, tensor in distance.state_dict().items()
        if name.startswith("net.")
    }
    other = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
    if other:
        found = f"{other[0]} of shape {list(given[other[0]].shape)}" if other[0] in given else f"no tensor {other[0]}"
        fix = f"save torchvision.models.{network}(weights='DEFAULT').state_dict() there"
        raise IntegrityError(str(source.path), found, f"weights of torchvision's {network}", fix)
    for name, tensor in own.items():
        tensor.copy_(given[name])
