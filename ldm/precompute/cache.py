"""Caches of computed tensors: contiguous safetensors shards of rows, an index of their hashes, and a passport.

Any process may write any shard, so a cache does not depend on how many of them there were. Reading maps the files into
memory: only the rows that are gathered are read. A shard is hashed before its first row is gathered, unless this
machine has hashed it already.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor

from ldm.core import artifact, hashes
from ldm.core.errors import IntegrityError, NumericsError

_INDEX = "index.json"
_FIX = "run `dvc checkout` to get a good copy, or `dvc repro` to write it again"


class _Shard(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^\d{5,}\.safetensors$")]
    num_rows: PositiveInt
    sha256: str


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1]
    num_rows: NonNegativeInt
    shards: list[_Shard]
    files: dict[str, str]


class CacheWriter:
    """Writes a cache into a folder: shards from any process, then `finish` on one of them."""

    def __init__(self, directory: Path, kind: artifact.Kind) -> None:
        self.directory = directory
        self.kind = kind
        directory.mkdir(parents=True, exist_ok=True)

    def write_shard(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write shard `number`: tensors with one row per entry of the first axis. NumericsError: one is not finite."""
        assert len({len(tensor) for tensor in tensors.values()}) == 1, "tensors of a shard have equally many rows"
        path = self.directory / _shard_name(number)
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise NumericsError(
                    f"{self.kind.name} shard {path.name}",
                    f"values of {name!r} not finite",
                    f"finite {tensor.dtype}",
                    "train its network again with a lower learning rate",
                )
        artifact.write_tensors(path, tensors)

    def shards(self, num_shards: int) -> Iterator[dict[str, Tensor]]:
        """The shards written so far, by any process."""
        return (artifact.open_tensors(self.directory / _shard_name(number)) for number in range(num_shards))

    def finish(
        self,
        num_shards: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        facts: Mapping[str, Any],
        files: Sequence[str] = (),
    ) -> artifact.Passport:
        """Write index and passport, once all shards are there. files: names of further files in the folder that belong
        to the cache."""
        shards = [self._describe(_shard_name(number)) for number in range(num_shards)]
        others = {name: artifact.sha256_file(self.directory / name) for name in files}
        index = _Index(format=1, num_rows=sum(shard.num_rows for shard in shards), shards=shards, files=others)
        artifact.write_json(self.directory / _INDEX, index.model_dump())
        return artifact.write_passport(
            self.directory, self.kind, config, inputs, facts, artifact.sha256_file(self.directory / _INDEX)
        )

    def _describe(self, name: str) -> _Shard:
        path = self.directory / name
        tensors = artifact.open_tensors(path)
        return _Shard(name=name, num_rows=len(next(iter(tensors.values()))), sha256=artifact.sha256_file(path))


class Cache:
    """A cache for reading. IntegrityError: it is missing, of another kind, or its index is corrupt; on gathering, a
    shard is missing or corrupt (both hashes are named)."""

    def __init__(self, directory: Path, kind: artifact.Kind) -> None:
        self.directory = directory
        self.passport = artifact.read_passport(directory, kind)
        index = _read_index(directory / _INDEX, self.passport.content_sha256)
        for name, sha256 in index.files.items():
            artifact.check_file(directory / name, sha256)
        self._shards = index.shards
        self._opened: dict[int, dict[str, Tensor]] = {}
        self._starts = np.cumsum([0, *(shard.num_rows for shard in index.shards)])
        assert self._starts[-1] == index.num_rows, f"{directory}: index.json contradicts itself"

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def files(self) -> list[tuple[Path, str]]:
        """Every shard with its SHA-256."""
        return [(self.directory / shard.name, shard.sha256) for shard in self._shards]

    def verify(self) -> None:
        """Hash every shard now, whatever this machine remembers. IntegrityError: one is missing or damaged."""
        for path, sha256 in self.files:
            hashes.check_file(path, sha256)

    def gather(self, name: str, rows: Int[np.ndarray, "b"]) -> Tensor:
        """Rows of the tensor `name`, in the given order and the stored dtype: [b, ...]."""
        assert len(rows) == 0 or (rows.min() >= 0 and rows.max() < len(self)), f"rows outside 0..{len(self) - 1}"
        # Which shard has each row; shape and dtype are those of any shard.
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        first = self._open(int(shards[0]) if len(rows) else 0)[name]
        out = torch.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for number in np.unique(shards).tolist():
            positions = np.flatnonzero(shards == number)
            local = torch.from_numpy(rows[positions] - self._starts[number])
            out[torch.from_numpy(positions)] = self._open(number)[name][local]
        return out

    def _open(self, number: int) -> dict[str, Tensor]:
        """Tensors of a shard, which is hashed once per machine."""
        if number not in self._opened:
            path = self.directory / self._shards[number].name
            hashes.check_once(path, self._shards[number].sha256)
            self._opened[number] = artifact.open_tensors(path)
        return self._opened[number]


def _shard_name(number: int) -> str:
    return f"{number:05d}.safetensors"


def _read_index(path: Path, sha256: str) -> _Index:
    artifact.check_file(path, sha256)
    try:
        return _Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise IntegrityError(
            str(path), f"not an index ({error.error_count()} wrong fields)", "the index of a cache", _FIX
        ) from error
