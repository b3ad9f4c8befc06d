"""Caches of computed tensors: contiguous safetensors shards of rows, an index of their hashes, and a passport.

Any process may write any shard, so a cache does not depend on how many of them there were. Reading maps the files into
memory: only the rows that are gathered are read. A shard is hashed before its first row is gathered, unless this
machine has hashed it already.

Rows of one length are stored as a tensor [rows, ...]. Rows of different lengths are stored one after another in a
tensor [entries, ...]; the tensor `start` [rows + 1] of the same shard says where each begins.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor

from ldm.core import artifact, hashes
from ldm.core.errors import IntegrityError, NumericsError

START = "start"
"""Name of the tensor that says where rows of different lengths begin."""
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

    def link_shard(self, number: int, path: Path) -> None:
        """Make an existing file shard `number`: a second name for its bytes, or a copy where the file system has no
        such links. Nothing may write into the file from now on."""
        target = self.directory / _shard_name(number)
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)

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
        sha256: Sequence[str] | None = None,
    ) -> artifact.Passport:
        """Write index and passport, once all shards are there.

        files: names of further files in the folder that belong to the cache. sha256: hashes of the shards, where they
        are known; None = computed now.
        """
        names = [_shard_name(number) for number in range(num_shards)]
        known = sha256 or [artifact.sha256_file(self.directory / name) for name in names]
        shards = [self._describe(name, digest) for name, digest in zip(names, known, strict=True)]
        others = {name: artifact.sha256_file(self.directory / name) for name in files}
        index = _Index(format=1, num_rows=sum(shard.num_rows for shard in shards), shards=shards, files=others)
        artifact.write_json(self.directory / _INDEX, index.model_dump())
        return artifact.write_passport(
            self.directory, self.kind, config, inputs, facts, artifact.sha256_file(self.directory / _INDEX)
        )

    def _describe(self, name: str, sha256: str) -> _Shard:
        return _Shard(name=name, num_rows=_num_rows(artifact.open_tensors(self.directory / name)), sha256=sha256)


class Cache:
    """A cache for reading. IntegrityError: it is missing, of another kind, or its index is corrupt; on gathering, a
    shard is missing or corrupt (both hashes are named). Nothing else need be there."""

    def __init__(self, directory: Path, kind: artifact.Kind) -> None:
        self.directory = directory
        self.passport = artifact.read_passport(directory, kind)
        index = _read_index(directory / _INDEX, self.passport.content_sha256)
        self._shards = index.shards
        self._files = {**{shard.name: shard.sha256 for shard in index.shards}, **index.files}
        self._opened: dict[int, dict[str, Tensor]] = {}
        self._starts = np.cumsum([0, *(shard.num_rows for shard in index.shards)])
        assert self._starts[-1] == index.num_rows, f"{directory}: index.json contradicts itself"

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def files(self) -> list[tuple[Path, str]]:
        """Every file besides index and passport, with its SHA-256."""
        return [(self.directory / name, sha256) for name, sha256 in self._files.items()]

    def file(self, name: str) -> Path:
        """A further file of the cache. IntegrityError: it is missing or damaged."""
        path = self.directory / name
        hashes.check_once(path, self._files[name])
        return path

    def copy(self, directory: Path, files: Collection[str]) -> None:
        """Copy the cache without its shards, and with these further files, into a new folder. IntegrityError: as
        `file`."""
        directory.mkdir(parents=True)
        for path in (self.directory / artifact.PASSPORT, self.directory / _INDEX, *map(self.file, files)):
            shutil.copyfile(path, directory / path.name)

    def verify(self) -> None:
        """Hash every shard now, whatever this machine remembers. IntegrityError: one is missing or damaged."""
        for path, sha256 in self.files:
            hashes.check_file(path, sha256)

    def gather(self, name: str, rows: Int[np.ndarray, "b"]) -> Tensor:
        """Rows of the tensor `name`, in the given order and the stored dtype: [b, ...]."""
        # Shape and dtype are those of any shard.
        first = self._shard_of(name, rows)
        out = torch.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for tensors, positions, local in self._parts(rows):
            out[positions] = tensors[name][local]
        return out

    def gather_padded(
        self, name: str, rows: Int[np.ndarray, "b"], length: int
    ) -> tuple[Tensor, Bool[Tensor, "b {length}"]]:
        """Rows of different lengths, with zeros up to `length`: [b, length, ...], and True where there is an entry."""
        first = self._shard_of(name, rows)
        out = torch.zeros((len(rows), length, *first.shape[1:]), dtype=first.dtype)
        is_there = torch.zeros((len(rows), length), dtype=torch.bool)
        for tensors, positions, local in self._parts(rows):
            starts, ends = tensors[START][local].tolist(), tensors[START][local + 1].tolist()
            for position, start, end in zip(positions.tolist(), starts, ends, strict=True):
                out[position, : end - start] = tensors[name][start:end]
                is_there[position, : end - start] = True
        return out, is_there

    def _shard_of(self, name: str, rows: Int[np.ndarray, "b"]) -> Tensor:
        """The tensor `name` of a shard that has one of the rows, or of the first shard if there are none."""
        assert len(rows) == 0 or (rows.min() >= 0 and rows.max() < len(self)), f"rows outside 0..{len(self) - 1}"
        return self._open(int(np.searchsorted(self._starts, rows[0], side="right")) - 1 if len(rows) else 0)[name]

    def _parts(self, rows: Int[np.ndarray, "b"]) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """For each shard that has some of the rows: its tensors, the positions of these rows in `rows`, and their
        numbers within the shard."""
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shards).tolist():
            positions = np.flatnonzero(shards == number)
            local = rows[positions] - self._starts[number]
            yield self._open(number), torch.from_numpy(positions), torch.from_numpy(local)

    def _open(self, number: int) -> dict[str, Tensor]:
        """Tensors of a shard, which is hashed once per machine."""
        if number not in self._opened:
            path = self.directory / self._shards[number].name
            hashes.check_once(path, self._shards[number].sha256)
            self._opened[number] = artifact.open_tensors(path)
        return self._opened[number]


class Lookup:
    """Row numbers by text, in columns that stay on disk: a lookup touches a few pages of them, whatever their length.

    A text is known by 16 bytes of its BLAKE2b hash. Two of 10^9 texts have equal ones with probability 2^-69.
    """

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        """columns: as `columns` makes them."""
        self._high, self._low, self._row = (columns[name].numpy() for name in ("high", "low", "row"))

    @staticmethod
    def digests(texts: Sequence[str]) -> Int64[np.ndarray, "b 2"]:
        """The hashes of texts, as two numbers each."""
        data = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
        return np.frombuffer(data, dtype="<i8").reshape(-1, 2).astype(np.int64)

    @staticmethod
    def columns(digests: Int64[np.ndarray, "b 2"]) -> dict[str, Tensor]:
        """The columns in which the text of `digests[i]` has row i. No two digests are equal."""
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        parts = {"high": digests[order, 0], "low": digests[order, 1], "row": order}
        return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}

    def __len__(self) -> int:
        return len(self._row)

    def rows(self, texts: Sequence[str]) -> Int64[np.ndarray, "b"]:
        """The row of each text; -1 = it has none."""
        high, low = self.digests(texts).T
        places = np.searchsorted(self._high, high)
        last = max(len(self) - 1, 0)
        rows = np.full(len(texts), -1, dtype=np.int64)
        # Texts that share the first half of a hash are neighbours; one step finds nearly all.
        searching = np.arange(len(texts))[places < len(self)]
        while len(searching):
            here = places[searching]
            is_near = self._high[here] == high[searching]
            is_found = is_near & (self._low[here] == low[searching])
            rows[searching[is_found]] = self._row[here[is_found]]
            searching = searching[is_near & ~is_found & (here < last)]
            places[searching] += 1
        return rows


def _num_rows(tensors: Mapping[str, Tensor]) -> int:
    if START in tensors:
        return len(tensors[START]) - 1
    (count,) = {len(tensor) for tensor in tensors.values()}
    return count


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
