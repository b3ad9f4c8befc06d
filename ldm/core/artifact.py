"""One folder per trained artefact: weights in safetensors and a passport in JSON that says what they are and what they
were made from.

A reader hashes what it reads, compares it with the passport, and raises an error that names both values. Nothing is
pickled.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.core.errors import IntegrityError
from ldm.core.hashes import check_file, sha256_file

WEIGHTS = "model.safetensors"
PASSPORT = "passport.json"
PACKAGES = ("numpy", "open_clip_torch", "safetensors", "torch")
"""Whose versions results may depend on."""
_REMAKE = "run `dvc repro`, or `dvc checkout` to bring back what dvc.lock records"


@dataclass(frozen=True)
class Kind:
    """A kind of artefact, and the upgrades of its older formats."""

    name: str
    upgrades: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = ()
    """Functions that turn a config of format n into one of format n + 1, from format 1 on. None is ever removed: models
    stay in remotes for years."""

    @property
    def format(self) -> int:
        """The format that this code writes."""
        return 1 + len(self.upgrades)


class Passport(BaseModel):
    """What an artefact is: its kind, config, inputs (name -> SHA-256), content hash, facts that readers compare,
    package versions, and a hash of all these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    format_version: int
    config: dict[str, Any]
    inputs: dict[str, str]
    content_sha256: str
    facts: dict[str, Any]
    packages: dict[str, str]
    passport_sha256: str

    @property
    def config_sha256(self) -> str:
        """Hash of the config, which says what the weights mean: two networks may share all of them."""
        return sha256_json(self.config)


def sha256_json(value: object) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces), in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a JSON value with sorted keys, so that equal values are equal bytes."""
    path.write_text(
        json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors: on the CPU, contiguous, in the order of their names, with the mode of the umask.
    OSError: the disk refuses it."""
    # save_file replaces the file by one that only its owner can read, so the usual mode is taken from an empty file.
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    with writing(path):
        save_file({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, path)
        path.chmod(mode)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """A block that writes safetensors, whose own errors tell of the disk in their text only. OSError: the disk refuses
    it."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(path)) from error


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, mapped into memory: bytes are read when used. IntegrityError: it is not
    safetensors."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise IntegrityError(str(path), f"not a safetensors file ({error})", "safetensors", _REMAKE) from error


def write_passport(
    directory: Path,
    kind: Kind,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
    content_sha256: str,
) -> Passport:
    """Write `passport.json` for content that is already there."""
    values = {
        "kind": kind.name,
        "format_version": kind.format,
        "config": dict(config),
        "inputs": dict(inputs),
        "content_sha256": content_sha256,
        "facts": dict(facts),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
    # Through JSON, so that the writer holds what a reader will get: lists instead of tuples.
    passport = Passport.model_validate_json(json.dumps(sealed(values)))
    write_json(directory / PASSPORT, passport.model_dump())
    return passport


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a passport with the hash of all the others."""
    rest = {name: value for name, value in values.items() if name != "passport_sha256"}
    return {**rest, "passport_sha256": sha256_json(rest)}


def write(
    directory: Path,
    kind: Kind,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Passport:
    """Write weights and passport into `directory`.

    config: JSON, enough to rebuild the network. inputs: name -> SHA-256 of what it was made from. facts: JSON that
    readers compare.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / WEIGHTS, tensors)
    return write_passport(directory, kind, config, inputs, facts, sha256_file(directory / WEIGHTS))


def read_passport(directory: Path, kind: Kind) -> Passport:
    """The passport of an artefact of this kind, its config upgraded to the newest format. IntegrityError: it is
    missing, corrupt, of another kind, or of a format that this code does not know.

    Warns if the artefact was written with other package versions.
    """
    path = directory / PASSPORT
    if not path.is_file():
        raise IntegrityError(str(directory), "no passport.json", f"an artefact of kind {kind.name!r}", _REMAKE)
    try:
        passport = Passport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise IntegrityError(
            str(path),
            f"not a passport ({error.error_count()} wrong fields)",
            f"a passport of kind {kind.name!r}",
            _REMAKE,
        ) from error
    seal = sealed(passport.model_dump())["passport_sha256"]
    if passport.passport_sha256 != seal:
        raise IntegrityError(str(path), f"fields with SHA-256 {seal}", passport.passport_sha256, _REMAKE)
    found, expected = f"kind {passport.kind!r}, format {passport.format_version}", f"kind {kind.name!r}"
    if passport.kind != kind.name:
        raise IntegrityError(str(path), found, expected, _REMAKE)
    if not 1 <= passport.format_version <= kind.format:
        fix = "update this code (git pull), or make the artefact again with this one (`dvc repro`)"
        raise IntegrityError(str(path), found, f"{expected}, format 1 to {kind.format}", fix)
    _warn_of_other_packages(path, passport)
    with fitting(directory):
        config = passport.config
        for upgrade in kind.upgrades[passport.format_version - 1 :]:
            config = upgrade(config)
    return passport.model_copy(update={"config": config})


@contextmanager
def fitting(directory: Path) -> Generator[None]:
    """A block that builds a network from the artefact in `directory`. IntegrityError: its config or weights do not fit
    this code."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(("config", *map(str, first["loc"])))
        raise _unfit(directory / PASSPORT, f"{place}: {first['msg']}") from error
    except KeyError as error:
        raise _unfit(directory / PASSPORT, f"no key {error}") from error
    except (TypeError, ValueError) as error:
        raise _unfit(directory / PASSPORT, f"config: {error}") from error
    except RuntimeError as error:
        lines = str(error).splitlines()
        found = lines[1].strip() if len(lines) > 1 else lines[0]  # load_state_dict's first line is a heading
        raise _unfit(directory / WEIGHTS, found) from error


def _unfit(path: Path, found: str) -> IntegrityError:
    fix = "check out the code that wrote it, or make it again with this one (`dvc repro`)"
    return IntegrityError(str(path), found, "config and weights that fit this code", fix)


def read(directory: Path, kind: Kind) -> tuple[Passport, dict[str, Tensor]]:
    """Passport and weights of an artefact of this kind, both verified. IntegrityError: missing, corrupt (with both
    hashes), or of another kind."""
    passport = read_passport(directory, kind)
    check_file(directory / WEIGHTS, passport.content_sha256)
    return passport, open_tensors(directory / WEIGHTS)


def check_input(directory: Path, passport: Passport, name: str, sha256: str) -> None:
    """IntegrityError unless the artefact in `directory` was made from the input `name` that has this hash."""
    actual = passport.inputs.get(name)
    if actual != sha256:
        raise IntegrityError(str(directory), f"{passport.kind} made with {name} {actual}", f"{name} {sha256}", _REMAKE)


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _warn_of_other_packages(path: Path, passport: Passport) -> None:
    here = {name: metadata.version(name) for name in passport.packages if name in PACKAGES}
    other = [
        f"{name} {version} (here {here.get(name)})"
        for name, version in passport.packages.items()
        if here.get(name) != version
    ]
    if other:
        warnings.warn(f"{path}: made with {', '.join(other)}", stacklevel=3)
