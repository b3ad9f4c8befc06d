"""How networks are computed: step by step or compiled by torch, and in which order the values of their feature maps
lie in memory. Neither changes a result by more than rounding, nor the names and the memory of weights."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm.core.params import MachineParams

MAX_SHAPES = 512
"""How often one piece of code may be compiled anew: all blocks share it, and each of their shapes counts. Past torch's
own limit of 8 it would silently compile no more."""


class Block(nn.Module):
    """A part that a network repeats. `machine.compile: blocks` compiles it, once for all that are equal."""


def described(machine: MachineParams) -> str:
    """What `prepare` will do, for the line that a stage prints first: nothing, or words after a comma."""
    how = [] if not machine.compile else [f"compile: {'true' if machine.compile is True else machine.compile}"]
    return ", ".join(["", *how, *["channels last"] * machine.channels_last])


def prepare(machine: MachineParams, *networks: nn.Module, as_wholes: bool = True) -> None:
    """Make calls of these networks compile them, and their convolutions work channels-last, as `machine` says. The
    first call of every shape then takes from seconds (`blocks`) to minutes.

    as_wholes: whether a network may become one graph; else only its blocks are compiled.
    """
    if machine.channels_last:
        for layer in (layer for network in networks for layer in network.modules() if isinstance(layer, nn.Conv2d)):
            layer.register_forward_pre_hook(_channels_last)
    if not machine.compile:
        return
    config = torch.compiler.config
    config.recompile_limit = config.accumulated_recompile_limit = MAX_SHAPES
    blocks = [part for network in networks for part in network.modules() if isinstance(part, Block)]
    if not as_wholes or (machine.compile == "blocks" and blocks):
        for block in blocks:
            block.compile(dynamic=False)  # kernels of fixed shapes are faster, and a network has few
    elif machine.compile == "graphs":
        for network in networks:
            network.forward = _copied(torch.compile(network.forward, mode="reduce-overhead", dynamic=False))
    else:
        for network in networks:
            network.compile()


def _copied(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose result stays as it is: a CUDA graph writes each one over the one before."""

    def copied(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        if isinstance(result, Tensor):
            return result.clone()
        return {name: value.clone() for name, value in cast(Mapping[str, Tensor], result).items()}

    return copied


def _channels_last(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The input of a convolution as tensor cores read it: all channels of a position beside each other."""
    return (inputs[0].contiguous(memory_format=torch.channels_last),)
