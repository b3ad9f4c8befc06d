"""A network split over the processes of a launch: each keeps a part of every weight, average and moment, and has a
block of the network whole only while it computes with it (Rajbhandari et al. 2020, stage 3; PyTorch's `fully_shard`,
known as FSDP2).

accelerate's own `prepare` is not used: in bf16 it would gather rounded weights, and norms would differ from those of a
whole model. Parts are DTensors, whose module is loaded only where something is split, since that takes a second. What
makes them whole is an exchange in which all processes take part.
"""

import copy
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ldm.compute import launcher, ranks
from ldm.core.errors import MachineError
from ldm.training.params import TrainingParams


class Splittable(Protocol):
    """A network that can be split."""

    def blocks(self) -> list[nn.Module]:
        """Parts that are called as modules, each whole while it computes; those within others come first."""
        ...


def split(objective: nn.Module, device: torch.device) -> nn.Module:
    """An objective that computes the same with copies of the `Splittable` networks that it consists of, which are split
    if the launcher's config asks for it, among several processes; else the objective itself. The other parts are
    shared.

    Every process has the same whole weights, on its CPU.
    """
    # Of the type, since a part of a module may have any name.
    networks = {name: child for name, child in objective.named_children() if hasattr(type(child), "blocks")}
    if not (launcher.splits() and ranks.count() > 1 and networks):
        return objective
    parted = copy.copy(objective)
    vars(parted)["_modules"] = dict(vars(objective)["_modules"])  # a copy shares it
    for name, network in networks.items():
        parted.add_module(name, _split(network, device))
        if torch.distributed.get_rank() == 0:
            print(f"{name}: split over {ranks.count()} processes, a block of it at a time is whole", flush=True)
    whole_ones = [name for name, weight in parted.named_parameters() if weight.requires_grad and not is_part(weight)]
    assert not whole_ones, f"nothing would average the gradients of {whole_ones}"
    return parted.to(device)


def _split(network: nn.Module, device: torch.device) -> nn.Module:
    """A copy in parts, on the device."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, own = init_device_mesh(device.type, (ranks.count(),)), copy.deepcopy(network)
    for weight in own.parameters():
        weight.data = weight.data.contiguous()  # as parts must be
    # Nothing stays whole after a pass without gradients either, since weights are exchanged with averages after it.
    for block in [*cast(Splittable, own).blocks(), own]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return own


def refuse_muon(params: TrainingParams) -> None:
    """MachineError: what updates whole matrices is asked for, where no process has one."""
    if params.muon is not None:
        fix = "set it to null, or start with whole models (configs/accelerate/ddp.yaml)"
        raise MachineError("training.muon", "Muon for a network that is split over processes", "null", fix)


def join(parted: nn.Module, objective: nn.Module, device: torch.device) -> None:
    """Give an objective the whole weights and buffers of the one that `split` made of it, on the device."""
    if parted is objective:
        return
    targets = objective.to(device).state_dict()
    for name, tensor in parted.state_dict().items():
        targets[name].copy_(whole(tensor))


def is_part(tensor: Tensor) -> bool:
    """Whether this process holds only a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be split, whole on every process."""
    return cast(Any, tensor).full_tensor().detach() if is_part(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, is_kept: bool) -> dict[str, Tensor]:
    """Tensors that may be split, by name; the split ones are made whole one by one, on the CPU, for the processes that
    keep them, and left out on the others."""
    together: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_part(tensor):
            together[name] = tensor
            continue
        made = whole(tensor)
        if is_kept:
            together[name] = made.cpu()
    return together


def like(weight: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor on the device of a weight; if that is split and has its shape, only the same part of it."""
    tensor = tensor.to(weight.device)
    if not is_part(weight) or tensor.shape != weight.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(weight, DTensor)
    part = torch.empty_like(weight.detach(), dtype=tensor.dtype)
    # The copy, since the part would keep the memory of the whole.
    return part.copy_(distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None))
