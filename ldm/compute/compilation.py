"""How networks are computed: step by step, compiled by torch or replayed by a GPU, and in which order the values of
their feature maps lie in memory. Neither changes a result by more than rounding, nor the names and the memory of
weights."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ldm.compute import graphs, launcher, ranks
from ldm.core.params import MachineParams

MAX_SHAPES = 512
"""How often one piece of code may be compiled anew: all blocks share it, and each of their shapes counts. Past torch's
own limit of 8 it would silently compile no more."""


class Block(nn.Module):
    """A part that a network repeats. `machine.compile: blocks` compiles it, once for all that are equal."""


def described(machine: MachineParams) -> str:
    """What `prepare` will do, for the line that a stage prints first: nothing, or words after a comma."""
    chosen = _chosen(machine)
    how = [] if not chosen else [f"compile: {'true' if chosen is True else chosen}"]
    return ", ".join(["", *how, *["channels last"] * machine.channels_last])


def prepare(machine: MachineParams, *networks: nn.Module, as_wholes: bool = True) -> None:
    """Make calls of these networks compile or record them, and their convolutions work channels-last, as `machine`
    says. Where torch compiles, the first call of every shape takes from seconds (`blocks`) to minutes.

    as_wholes: whether a network may become one graph; else only its blocks are compiled, and nothing is recorded.
    """
    if machine.channels_last:
        for layer in (layer for network in networks for layer in network.modules() if isinstance(layer, nn.Conv2d)):
            layer.register_forward_pre_hook(_channels_last)
    how = _chosen(machine)
    if how == "graphs":
        for network in networks if as_wholes else ():
            graphs.replay(network)
    elif how:
        _compile(networks, as_wholes and how is True)


def _chosen(machine: MachineParams) -> Literal[False, True, "blocks", "graphs"]:
    if machine.compile is not None:
        return machine.compile
    is_whole_and_alone = ranks.count() == 1 and not launcher.splits()
    return "graphs" if torch.cuda.is_available() and is_whole_and_alone else False


def _compile(networks: Sequence[nn.Module], as_wholes: bool) -> None:
    """Blocks, or whole networks; a network without blocks is one."""
    config = torch.compiler.config
    config.recompile_limit = config.accumulated_recompile_limit = MAX_SHAPES
    blocks = [part for network in networks for part in network.modules() if isinstance(part, Block)]
    if as_wholes or not blocks:
        for network in networks:
            network.compile()
    for block in [] if as_wholes else blocks:
        block.compile(dynamic=False)  # kernels of fixed shapes are faster, and a network has few


def _channels_last(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The input of a convolution as tensor cores read it: all channels of a position beside each other."""
    return (inputs[0].contiguous(memory_format=torch.channels_last),)
