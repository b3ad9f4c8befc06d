"""One state on the disk: a folder of safetensors and JSON, hashed when it is written and when it is read."""

import hashlib
import json
import os
import shutil
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.core import artifact
from ldm.core.errors import IntegrityError, NumericsError

TENSORS = "tensors.safetensors"
_VALUES, _MANIFEST = "values.json", "manifest.json"


@dataclass(frozen=True)
class State:
    """What a run needs to resume after `step` updates."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A saved state: its folder, and the hash of its manifest, which holds the hashes of its files."""

    directory: Path
    manifest_sha256: str


def snapshot(state: State) -> State:
    """A copy in host memory, pinned if the state is on a GPU, which the next steps leave as it is."""
    copies: dict[str, Tensor] = {}
    for name, tensor in state.tensors.items():
        copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        copies[name].copy_(tensor, non_blocking=True)
    if any(tensor.is_cuda for tensor in state.tensors.values()):
        torch.cuda.synchronize()
    return State(state.step, copies, deepcopy(state.values))


def refuse_nonfinite(state: State, directory: Path, name: str) -> None:
    """NumericsError unless all tensors are finite. directory: its run. name: its own."""
    floats = {name: tensor for name, tensor in state.tensors.items() if tensor.is_floating_point()}
    # All are asked before the first answer is awaited.
    verdicts = {name: torch.isfinite(tensor).all() for name, tensor in floats.items()}
    for tensor_name, is_finite in verdicts.items():
        if not is_finite:
            fix = "lower learning_rate of the training it comes from, then `ldm resume STATE` with one of `ldm runs`"
            raise NumericsError(str(directory), f"{tensor_name} is not finite in {name}", "finite numbers", fix)


def write(directory: Path, state: State) -> None:
    """Write files, then their hashes, then the folder, each forced to the disk before the next."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    artifact.write_tensors(directory / TENSORS, state.tensors)
    # Not write_json: a loss may be NaN, and columns keep their order.
    (directory / _VALUES).write_text(json.dumps({"step": state.step, **state.values}), encoding="utf-8")
    for name in (TENSORS, _VALUES):
        sync(directory / name)
    sha256 = {name: artifact.sha256_file(directory / name) for name in (TENSORS, _VALUES)}
    artifact.write_json(directory / _MANIFEST, sha256)
    sync(directory / _MANIFEST)
    sync(directory)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def check(directory: Path, manifest_sha256: str | None = None) -> Saved:
    """Verify the hashes of a state's files. IntegrityError: one differs, a file cannot be read, or the manifest has
    another hash than `manifest_sha256`."""
    path = directory / _MANIFEST
    fix = "see `ldm runs` for what else is saved, or start afresh"
    try:
        data = path.read_bytes()
        manifest: dict[str, str] = json.loads(data)
        if sorted(manifest) != sorted((TENSORS, _VALUES)):
            raise IntegrityError(str(path), f"files {sorted(manifest)}", f"{TENSORS}, {_VALUES}", fix)
        actual = hashlib.sha256(data).hexdigest()
        if manifest_sha256 not in (None, actual):
            raise IntegrityError(str(path), f"SHA-256 {actual}", str(manifest_sha256), fix)
        for name, sha256 in manifest.items():
            artifact.check_file(directory / name, sha256)
    except (OSError, ValueError) as error:
        raise IntegrityError(str(path), str(error), "the hashes of a state", fix) from None
    return Saved(directory, actual)


def read(saved: Saved) -> State:
    """Read exactly this state. IntegrityError: it is gone, damaged, or has been written again."""
    check(saved.directory, saved.manifest_sha256)
    state = mapped(saved.directory)
    # Copies, since mapped tensors would change with their file, and a training updates them in place.
    return State(state.step, {name: t.clone() for name, t in state.tensors.items()}, state.values)


def mapped(directory: Path) -> State:
    """A state whose tensors are read when they are used."""
    values: dict[str, Any] = json.loads((directory / _VALUES).read_bytes())
    return State(values.pop("step"), artifact.open_tensors(directory / TENSORS), values)


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of each file of a state, as it was when it was written."""
    return json.loads((directory / _MANIFEST).read_bytes())
