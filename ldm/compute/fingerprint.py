"""Fingerprints: what a result depends on, by dotted key: params, inputs, code and packages.

A run continues from a saved state automatically only if all of these are unchanged.
"""

import ast
import hashlib
import platform
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ldm.compute import closure
from ldm.core import artifact
from ldm.core.config import is_beside

_BESIDE = "beside."
_KINDS = ("params", "inputs", "packages", "code")
_MISSING = "(none)"

AROUND = frozenset(
    f"ldm/{name}.py"
    for name in (
        *("core/config", "core/errors", "core/hashes", "core/locks", "core/params", "core/plain_yaml", "core/progress"),
        *("core/stage", "core/system", "core/workspace", "compute/closure", "compute/cores", "compute/fingerprint"),
        *("compute/ranks", "compute/stopping"),
    )
)
"""Code around the work of a stage: how it starts, reads its params, waits, reports errors and ends. No computed value
depends on it."""


def of(
    script: str, section: BaseModel, inputs: Mapping[str, str], without: Collection[str] = frozenset()
) -> dict[str, Any]:
    """The fingerprint of a stage: its params, the hashes of its inputs and of its code, and versions of packages.

    Fields marked `config.BESIDE`, on which no step depends (such as how often to save or how much to show), have keys
    `beside.` instead of `params.`. The numbers of threads and processes are not included: they change the last bits of
    a result, but not what is computed.

    script: path of the stage's script. Its code is this file and all that it imports, as listed in dvc.yaml. without:
    files of the code to leave out.
    """
    code = of_code(Path(script))
    return {
        **of_params(section),
        **{f"inputs.{name}": sha256 for name, sha256 in sorted(inputs.items())},
        **{key: sha256 for key, sha256 in code.items() if file_of(key) not in without},
        **of_packages(),
    }


def of_code(script: Path) -> dict[str, str]:
    """SHA-256 of every file that a stage runs, by key `code.FILE`; FILE is relative to the script's repository."""
    root = script.resolve().parents[1]
    return {f"code.{name}": sha256_code(root / name) for name in closure.files_of(script.resolve(), root)}


def file_of(key: str) -> str:
    """The file that belongs to a key of `of_code`."""
    return key.removeprefix("code.")


def of_params(section: BaseModel) -> dict[str, Any]:
    """Every value of a section, by dotted key."""
    return dict(_values("", section, is_free=False))


def of_packages() -> dict[str, str]:
    """Versions of Python and of the packages on which results may depend."""
    python = {"packages.python": ".".join(platform.python_version_tuple()[:2])}
    return python | {f"packages.{name}": metadata.version(name) for name in artifact.PACKAGES}


def sha256_code(path: Path) -> str:
    """SHA-256 of what a Python file does: of its syntax tree without comments, layout and docstrings. For any other
    file, SHA-256 of its bytes."""
    if path.suffix != ".py":
        return artifact.sha256_file(path)
    return _sha256_source(path.read_bytes())


@cache
def _sha256_source(source: bytes) -> str:
    return hashlib.sha256(ast.dump(closure.tree_of(source)).encode()).hexdigest()


def identity(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a fingerprint on which a step depends."""
    return {key: value for key, value in fingerprint.items() if not key.startswith(_BESIDE)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Key -> values before and now, for every key that differs and on which a step depends."""
    before, now = identity(before), identity(now)
    keys = sorted({*before, *now}, key=lambda key: (_KINDS.index(key.split(".")[0]), key))
    pairs = {key: [before.get(key, _MISSING), now.get(key, _MISSING)] for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def in_words(differences: Mapping[str, list[Any]], most: int = 8) -> list[str]:
    """One line per difference, with both values shortened; at most `most` lines, then the number of others."""
    lines = [f"{key}: {_short(before)} -> {_short(now)}" for key, (before, now) in differences.items()]
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]


def _short(value: Any) -> str:
    """A hash is shortened to its first digits, a long value to its start."""
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else text if len(text) <= 60 else text[:57] + "..."


def _values(prefix: str, section: BaseModel, is_free: bool) -> Iterator[tuple[str, Any]]:
    for name, field in type(section).model_fields.items():
        value, free = getattr(section, name), is_free or is_beside(field)
        if isinstance(value, BaseModel):
            yield from _values(f"{prefix}{name}.", value, free)
        else:
            dumped = section.model_dump(mode="json", include={name})[name]
            yield from _flatten(f"{_BESIDE if free else 'params.'}{prefix}{name}", dumped)


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _flatten(f"{name}.{key}", entry)
    else:
        yield name, value
