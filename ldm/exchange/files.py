"""Weights that others saved, read safely: safetensors, or pickles that hold tensors alone.

What a file is, its content says, not its name. Nothing in it is executed: a pickle goes through torch's reader of
weights (`weights_only`), which refuses whatever is not a tensor or a plain container. Nothing is downloaded.
"""

import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.core import workspace
from ldm.core.artifact import sha256_json
from ldm.core.errors import IntegrityError
from ldm.core.hashes import sha256_file

CONFIG = "config.json"
STATED = "ldm"
"""Entry in the header of a single file of `ldm export`: JSON that also holds the config of each network by the name of
its folder in a pipeline."""
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SUFFIXES = (".safetensors", ".safetensors.index.json", ".fp16.safetensors", ".bin", ".bin.index.json", ".fp16.bin")
NAMES = tuple(f"{stem}{suffix}" for suffix in _SUFFIXES for stem in _STEMS)
"""Names of weights in a folder of diffusers or transformers; the first one that is there is read."""
_EXPECTED = "safetensors, or a checkpoint of tensors alone that torch has saved"
_FETCH = "fetch the file again, and compare its size and SHA-256 with those of its source"
_CONVERT = "fetch the same weights as .safetensors"
_POINTER = b"version https://git-lfs"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_UNREADABLE = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    EOFError,
    OSError,
    ImportError,
    struct.error,
)
"""What torch's reader raises for damaged bytes, besides UnpicklingError."""
_WRAPPERS = ("state_dict", "model_state_dict", "module", "model")
"""Keys under which trainers keep the weights, beside their own state."""


@dataclass(frozen=True)
class Source:
    """A network as others saved it."""

    path: Path
    """What was named: a file or a folder."""
    tensors: dict[str, Tensor]
    """All tensors by their names in the files, in the number type that was saved."""
    config: dict[str, Any] | None
    """Content of the folder's config.json, or what a single file of `ldm export` states of the same; None for any other
    file."""
    files: dict[str, str]
    """Name -> SHA-256 of every file that holds weights; all are in one folder."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file; of several, that of the canonical JSON of `files`."""
        return next(iter(self.files.values())) if len(self.files) == 1 else sha256_json(self.files)


def read(path: Path, part: str | None = None) -> Source:
    """Weights of a file, or weights and config.json of a folder as diffusers or transformers write it.

    part: name of the folder within that of a whole pipeline, such as `vae`, which is read if it is there. Of a single
    file, all is read, and the config of this part if `ldm export` wrote it.

    IntegrityError: it is missing, incomplete, damaged, of another format, or holds more than tensors.
    """
    if path.is_file():
        tensors, config = _tensors(path), None if part is None else _stated(path, part)
        return Source(path, tensors, config, {path.name: sha256_file(path)})
    if not path.is_dir():
        fix = workspace.left_behind(path) or "correct the path, or bring it back by `dvc pull`"
        raise IntegrityError(str(path), "no such file or folder", "weights, or a folder that holds them", fix)
    folder = path / part if part is not None and (path / part).is_dir() else path
    config, weights = read_json(folder / CONFIG), _weights(folder)
    parts = _shards(weights) if weights.name.endswith(".json") else [weights]
    tensors: dict[str, Tensor] = {}
    for file in parts:
        tensors |= _tensors(file)
    return Source(path, tensors, config, {file.name: sha256_file(file) for file in parts})


def header(path: Path) -> dict[str, str]:
    """What a safetensors file that has been read says besides its tensors."""
    with path.open("rb") as file:
        head = file.read(8)
        if file.read(1) != b"{":  # a pickle, which has none
            return {}
        file.seek(8)
        return json.loads(file.read(int.from_bytes(head, "little"))).get("__metadata__") or {}


def load(path: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all weights of a network, which were read from `path`. IntegrityError: names or shapes do not fit, or values
    are not finite."""
    if misfits := unfit(tensors, network.state_dict()):
        fix = "fetch the whole file again, or that of a network of this kind"
        raise IntegrityError(str(path), misfits, "the weights of this network, no more and no fewer", fix)
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise IntegrityError(str(path), f"{_few(broken)} not finite", "numbers", _FETCH)
    network.load_state_dict(dict(tensors))


def unfit(tensors: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> str:
    """What does not fit a network's state dict, with names, on one line; empty if all does."""
    missing = [name for name in network if name not in tensors]
    unknown = [name for name in tensors if name not in network]
    both = [(name, tensors[name].shape, network[name].shape) for name in network if name in tensors]
    other = [f"{name} {_by(theirs)} instead of {_by(ours)}" for name, theirs, ours in both if theirs != ours]
    parts = {"missing": missing, "unknown": unknown, "of another shape": other}
    return "; ".join(f"{what}: {_few(some)}" for what, some in parts.items() if some)


def misfits(config: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> str:
    """What a config.json says that is not among the known values of a key, on one line; empty if there is nothing. Each
    entry of a list must be known; a key that is not there is."""

    def values(value: Any) -> set[Any]:
        return set(value) if isinstance(value, list | tuple) else {value}

    wrong = [key for key, legal in known.items() if not values(config.get(key, legal)) <= set(legal)]
    return f"{CONFIG}: {', '.join(f'{key} {config[key]}' for key in wrong)}" if wrong else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file. IntegrityError: it is missing or is none."""
    if not path.is_file():
        expected = f"a folder as diffusers or transformers write it, with {path.name}"
        raise IntegrityError(str(path), f"no such file, but {_beside(path.parent)}", expected, "name such a folder")
    try:
        value: object = json.loads(path.read_bytes())
    except ValueError as error:
        raise IntegrityError(str(path), f"no JSON ({error})", "a JSON object", _FETCH) from None
    if not isinstance(value, dict):
        raise IntegrityError(str(path), f"a JSON {type(value).__name__}", "a JSON object", _FETCH)
    return cast(dict[str, Any], value)


def _stated(path: Path, part: str) -> dict[str, Any] | None:
    """The config of a network that our header of a single file states; None if there is none."""
    try:
        stated: object = json.loads(header(path).get(STATED, "{}"))
    except ValueError:
        return None
    config = cast(dict[str, Any], stated).get(part) if isinstance(stated, dict) else None
    return cast(dict[str, Any], config) if isinstance(config, dict) else None


def _weights(folder: Path) -> Path:
    found = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if found is None:
        expected = f"weights, such as {NAMES[0]}"
        raise IntegrityError(str(folder), f"no weights, but {_beside(folder)}", expected, "fetch the whole folder")
    return found


def _shards(index: Path) -> list[Path]:
    """The files that an index of sharded weights names, all in its own folder."""
    listed = read_json(index).get("weight_map")
    names = cast(dict[str, Any], listed).values() if isinstance(listed, dict) else ()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise IntegrityError(str(index), "no weight_map", "the names of files beside it", _FETCH)
    files = [index.parent / name for name in sorted(set(names))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise IntegrityError(
            str(index.parent), f"no {_few(missing)}", f"all {len(files)} files of {index.name}", _FETCH
        )
    return files


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file by name."""
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(_POINTER):
        fix = "run `git lfs pull` where it was cloned, or download the file itself"
        raise IntegrityError(str(path), "a pointer of Git LFS, not the file that it stands for", _EXPECTED, fix)
    if head[8:9] == b"{":  # after its length, which may begin like a pickle
        return _safetensors(path, int.from_bytes(head[:8], "little"))
    if head.startswith((_ZIP, _PICKLE)):
        return _pickled(path)
    start = "nothing" if not head else repr(head[:16].decode("latin-1"))
    raise IntegrityError(str(path), f"a file that starts with {start}", _EXPECTED, _FETCH)


def _safetensors(path: Path, header_bytes: int) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        found = f"no whole safetensors file ({error})"
        if (bytes_there := os.path.getsize(path)) < (whole := _whole_bytes(path, header_bytes)):
            found = f"{bytes_there} of the {whole} bytes that its header promises: a download that was cut"
        raise IntegrityError(str(path), found, "a whole safetensors file", _FETCH) from None


def _whole_bytes(path: Path, header_bytes: int) -> int:
    """How many bytes a safetensors file has by its header; 0 if the header cannot be read."""
    with open(path, "rb") as file:
        file.seek(8)
        header = file.read(min(header_bytes, os.path.getsize(path)))
    if len(header) < header_bytes:
        return 8 + header_bytes
    ends = re.findall(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)', header)
    return 8 + header_bytes + max(map(int, ends), default=0)


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)):? *([\w.]+)", str(error))
        what = f"objects or code ({named[1]})" if named else "objects or code, or damaged bytes"
        found = f"a pickle that holds {what}, which is never run"
        raise IntegrityError(str(path), found, _EXPECTED, _CONVERT) from None
    except _UNREADABLE as error:
        found = f"no whole checkpoint of torch ({' '.join(str(error).split())[:120]})"
        raise IntegrityError(str(path), found, _EXPECTED, _FETCH) from None
    return _unwrapped(path, content)


def _unwrapped(path: Path, content: object) -> dict[str, Tensor]:
    """The tensors by name in what a trainer saved: the content itself, or what it has under one of `_WRAPPERS`."""
    if not isinstance(content, Mapping):
        raise IntegrityError(str(path), f"a {type(content).__name__}", "tensors by name", _CONVERT)
    values = cast(Mapping[Any, Any], content)
    for key in _WRAPPERS:
        if isinstance(values.get(key), Mapping):
            return _unwrapped(path, values[key])
    tensors = {str(name): value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        found = f"a mapping without tensors ({_few([str(name) for name in values]) or 'empty'})"
        raise IntegrityError(str(path), found, "tensors by name", _CONVERT)
    return tensors


def _by(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _beside(folder: Path) -> str:
    """What a folder holds, in words."""
    return (
        _few(sorted(file.name for file in folder.iterdir())) if folder.is_dir() and any(folder.iterdir()) else "nothing"
    )


def _few(names: list[str]) -> str:
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")
