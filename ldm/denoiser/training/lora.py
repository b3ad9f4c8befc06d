"""Low-rank adaptation of a denoiser by the package `peft` (Hu et al. 2021)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm import randomness
from ldm.core.errors import ConfigError, MachineError
from ldm.denoiser import adapters
from ldm.denoiser.adapters import Adapter
from ldm.denoiser.training.params import LoraParams

_WHERE = "params.yaml: train_unet.lora"
_NAME = "adapter"


class Lora:
    """Low-rank layers around some layers of a network, which alone are trained. They add nothing at first. Without
    params there are none, and all of the network is trained."""

    def __init__(self, network: nn.Module, params: LoraParams | None, seed: int) -> None:
        """Put them around the layers that `params.targets` name; their weights are functions of the seed. ConfigError:
        one names no layer. MachineError: the package peft is not installed."""
        self._network, self._params, self.adapter = network, params, Adapter({})
        if params is None:
            return
        _check_targets(network, params.targets)
        peft = _peft()
        torch.manual_seed(randomness.key(seed, "lora"))
        config = peft.LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=params.targets)
        self._model = peft.LoraModel(network, config, _NAME)

    def merge(self) -> None:
        """Take the layers away, and add what they learned to the weights of the network: exactly what `adapter` then
        adds to those that the training started from."""
        if self._params is None:
            return
        layers: dict[str, tuple[Tensor, Tensor]] = {}
        scale = self._params.alpha / self._params.rank
        for name, layer in self._network.named_modules():
            if hasattr(layer, "lora_A"):
                down, up = layer.get_parameter(f"lora_A.{_NAME}.weight"), layer.get_parameter(f"lora_B.{_NAME}.weight")
                layers[name] = down.detach().cpu().clone(), scale * up.detach().cpu()
        self._model.unload()
        self.adapter = Adapter(layers)
        self.adapter.add_to(self._network, 1.0, _WHERE)

    def write(self, directory: Path, inputs: Mapping[str, str]) -> None:
        """Write the adapter, if there is one, into its folder within that of the denoiser. inputs: what it was made
        from."""
        if self._params is not None:
            adapters.write(directory / adapters.FOLDER, self.adapter, self._params.model_dump(mode="json"), inputs)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        fix = 'pip install "ldm[exchange]", or set lora: null'
        raise MachineError(_WHERE, "no package peft", "it is installed", fix) from error
    return peft


def _check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown:
        ends = ", ".join(sorted({re.sub(r".*\.(?=[a-z])", "", name) for name in names}))
        fix = f"write ends of names, such as {ends}"
        raise ConfigError(f"{_WHERE}.targets", f"{', '.join(unknown)}, which no layer is called", "layers", fix)
