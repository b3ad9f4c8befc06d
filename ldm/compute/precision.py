"""Number types by name, and autocast to them."""

import copy
from typing import TypeVar

import torch
from torch import nn

from ldm.core.params import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The type of matrix products and convolutions; weights, sums and outputs of networks stay float32."""

Module = TypeVar("Module", bound=nn.Module)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context with matrix products and convolutions in `precision`; fp32 also disables an enclosing autocast."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def cast_products(network: Module, precision: Precision) -> Module:
    """A copy that holds the weights of its linear maps and convolutions as autocast to `precision` makes them at every
    call, so that many calls need it once. Inside that autocast, its outputs are equal in every bit."""
    network = copy.deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(DTYPES[precision])
    return network
