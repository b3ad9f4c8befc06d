"""Adapters: what low-rank adaptation (LoRA, Hu et al. 2021) adds to some layers of a denoiser, as a file of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError

KIND = artifact.Kind("adapter")
"""Kind of the artefact that holds an adapter."""
FOLDER = "adapter"
"""Its folder, in that of the denoiser that it is a part of."""
_PREFIX, _DOWN, _UP = "unet.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """Two thin matrices, or convolutions, for each of some layers: the first reduces the inputs of the layer to a few
    numbers, the second makes outputs of them, which are added to those of the layer."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    """Name of the layer -> down [r, in, ...] and up [out, r, ...]."""

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], where: str) -> Self:
        """From the tensors of a file in the layout of peft and diffusers. IntegrityError: one has another name, or
        misses its fellow."""
        names = sorted({name.removeprefix(_PREFIX).removesuffix(_DOWN).removesuffix(_UP) for name in tensors})
        pairs = {name: (f"{_PREFIX}{name}{_DOWN}", f"{_PREFIX}{name}{_UP}") for name in names}
        if others := sorted({name for pair in pairs.values() for name in pair} ^ set(tensors)):
            found, expected = f"{len(others)} names like {others[0]}", f"{_PREFIX}LAYER{_DOWN} and {_PREFIX}LAYER{_UP}"
            raise IntegrityError(where, found, expected, "name an adapter that `train_unet` or peft wrote for a UNet")
        return cls({name: (tensors[down], tensors[up]) for name, (down, up) in pairs.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names in a file. Nothing but a product of both matrices is added, so that a tool needs
        no number besides them."""
        ends = (_DOWN, _UP)
        return {
            f"{_PREFIX}{name}{end}": part
            for name, pair in self.layers.items()
            for end, part in zip(ends, pair, strict=True)
        }

    def add_to(self, network: nn.Module, scale: float, where: str) -> None:
        """Add `scale` times what it adds to the weights of a network. ConfigError: it is of another network.
        IntegrityError: some of it is not finite. The network is left as it was then."""
        weights = {name: getattr(module, "weight", None) for name, module in network.named_modules()}
        for name, (down, up) in self.layers.items():
            weight = weights.get(name)
            if not isinstance(weight, Tensor) or not _fits(weight, down, up):
                found = f"layer {name} of {list(up.shape)} times {list(down.shape)}"
                expected = f"one that adds to {list(weight.shape)}" if isinstance(weight, Tensor) else "no such layer"
                raise ConfigError(where, found, f"{expected}, as in the UNet", "name an adapter of this UNet")
            if not all(part.float().isfinite().all() for part in (down, up)):
                fix = "name another adapter, or fetch or train this one again"
                raise IntegrityError(where, f"layer {name} with values that are not finite", "numbers", fix)
        with torch.no_grad():
            for name, (down, up) in self.layers.items():
                weight = network.get_parameter(f"{name}.weight")
                change = up.float().flatten(1) @ down.float().flatten(1)
                weight += (scale * change).view_as(weight).to(weight)


def _fits(weight: Tensor, down: Tensor, up: Tensor) -> bool:
    if not is_pair(down, up):
        return False
    return len(up) == len(weight) and up[0].numel() == len(down) and down[0].numel() == weight[0].numel()


def is_pair(down: Tensor, up: Tensor) -> bool:
    """Whether both are matrices or convolutions, with a rank of at least 1."""
    return all(part.dim() >= 2 and part.numel() > 0 for part in (down, up))


def write(directory: Path, adapter: Adapter, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Write an adapter as an artefact. config: how it was made. inputs: what it was made from, `init_from` among them,
    the denoiser that it adapts."""
    artifact.write(directory, KIND, config, adapter.tensors, inputs, {})


def load(directory: Path) -> tuple[Adapter, artifact.Passport]:
    """The adapter in a folder, with its passport. IntegrityError: missing, corrupt or of another kind."""
    passport, tensors = artifact.read(directory, KIND)
    return Adapter.of_tensors(tensors, str(directory)), passport
