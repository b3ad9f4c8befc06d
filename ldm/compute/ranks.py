"""Communication between the processes of one launch: JSON, so that they can compare what they are about to do, and
waits that end when one of the processes is gone."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed

from ldm.core import artifact
from ldm.core.errors import IntegrityError, MachineError

STEP_WAIT = timedelta(minutes=10)
"""The longest wait for other processes within a step: all do the same work."""
LONGEST_WAIT = timedelta(hours=12)
"""The longest wait in `wait` and in the exchanges below: for a process that hashes or writes a large file, or has a
larger share of the work."""

_WHERE = "the processes of this launch"
_FIX = "start all of them from the same commit, params file, data and packages; nothing was computed from a mixture"
_NUM_SHOWN = 8
_CHUNK = 2**20


@contextmanager
def together() -> Generator[None]:
    """A block in which processes work together. MachineError: another one ended, or did not answer in time."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no exception class for a closed connection; its message holds the path of its source.
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        reason = " ".join(str(error).split("] ", 1)[-1].split(". ")[0].split())
        fix = "see what that process printed, then run this again: it goes on from the last saved state"
        raise MachineError(
            _WHERE, f"another one ended or is out of reach ({reason})", "all of them until the end", fix
        ) from None


def count() -> int:
    """Number of processes of this launch."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait() -> None:
    """Wait until all processes are here, for hours if need be."""
    if count() > 1:
        with together():
            distributed.barrier(group=_group())


def gather(value: Any) -> list[Any]:
    """A JSON value of every process, by rank, on every process."""
    if count() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    with together():
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
        distributed.all_gather(sizes, torch.tensor([len(data)]), group=_group())
        most = max(int(size) for size in sizes)
        parts = [torch.zeros(most, dtype=torch.uint8) for _ in sizes]
        distributed.all_gather(parts, torch.nn.functional.pad(data, (0, most - len(data))), group=_group())
    return [json.loads(bytes(part[: int(size)].tolist())) for part, size in zip(parts, sizes, strict=True)]


def from_main(value: Any) -> Any:
    """The main process's JSON value, on every process; the values of the others are ignored."""
    return gather(value)[0]


def agree(values: Mapping[str, Any], fix: str = _FIX) -> None:
    """IntegrityError on every process, with the values of each, unless all have equal JSON values."""
    # Values of a large model are long, so hashes are compared first.
    if len(set(gather(artifact.sha256_json(values)))) == 1:
        return
    everyone: list[dict[str, Any]] = gather(dict(values))
    keys = [key for key in dict.fromkeys(key for each in everyone for key in each) if _differs(key, everyone)]
    shown = [f"{key} is {_sides([each.get(key) for each in everyone])}" for key in keys[:_NUM_SHOWN]]
    more = [f"and {len(keys) - len(shown)} more"] if len(keys) > len(shown) else []
    raise IntegrityError(_WHERE, "; ".join([*shown, *more]), "the same on all", fix)


def refuse_any(name: str, problem: str | None, good: str, fix: str) -> None:
    """IntegrityError on every process if any of them has a problem with `name`; it lists each problem with its ranks,
    and the ranks that are `good`."""
    problems = gather(problem)
    if any(problems):
        found = _sides([each or good for each in problems], short=False)
        raise IntegrityError(_WHERE, f"{name} is {found}", f"{good} on all", fix)


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> shape and two sums over the bits of a tensor, one of them weighted by position, computed on the tensor's
    device. Equal tensors have equal sums; different ones have equal sums with probability 2^-64."""
    if not tensors:
        return {}
    sums = torch.stack([_sums(tensor.detach()).cpu() for tensor in tensors.values()]).tolist()
    words = (f"{plain & 0xFFFFFFFFFFFFFFFF:016x}{weighted & 0xFFFFFFFFFFFFFFFF:016x}" for plain, weighted in sums)
    return {name: f"{list(tensor.shape)} {word}" for (name, tensor), word in zip(tensors.items(), words, strict=True)}


def _sums(tensor: Tensor) -> Tensor:
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    flat, total = tensor.contiguous().flatten().view(words), torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK].long()
        place = torch.arange(start + 1, start + 1 + len(part), device=tensor.device)
        total += torch.stack([part.sum(), (part * place).sum()])
    return total


def _differs(key: str, everyone: Sequence[Mapping[str, Any]]) -> bool:
    return len({artifact.sha256_json(each.get(key)) for each in everyone}) > 1


def _sides(values: Sequence[Any], short: bool = True) -> str:
    """Every value with its ranks, as in `1 on process 0, 2 on processes 1, 2`."""
    sides: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        text = value if isinstance(value, str) else json.dumps(value)
        sides.setdefault(text, []).append(rank)
    return ", ".join(f"{_cut(text) if short else text} on {_processes(ranks)}" for text, ranks in sides.items())


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _processes(ranks: Sequence[int]) -> str:
    named = ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
    return f"process{'es' if len(ranks) > 1 else ''} {named}"


def _group() -> distributed.ProcessGroup:
    assert distributed.group.WORLD is not None, "several processes without a group"
    return _patient(distributed.group.WORLD)


@cache
def _patient(world: distributed.ProcessGroup) -> distributed.ProcessGroup:
    """A gloo group beside that of the steps: it waits for hours, yet notices at once when a process is gone."""
    group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    assert isinstance(group, distributed.ProcessGroup), "every process is a member"
    return group
