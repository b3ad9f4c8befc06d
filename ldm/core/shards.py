"""Webdataset tars with an index: written deterministically, read strictly, any sample at random.

A split is a folder of `00000.tar`, `00001.tar`, ... and `index.json` with sample count, size and SHA-256 of each.
Sample KEY with parts "json" and "png" is two neighbouring members of a tar, KEY.json and KEY.png.
"""

import hashlib
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from ldm.core import images
from ldm.core.errors import IntegrityError

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "val", "unseen", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "val", "unseen", "held_out")
"""`val` shows in other combinations what `train` shows. `unseen` and `held_out` show compositions that neither has, if
the corpus keeps some back: settings are chosen on `unseen`, and `held_out` is looked at once, after that."""
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""Legal keys: a key becomes a file name in a tar, and webdataset cuts names at the first dot."""
_PART = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)?")
_BLOCK = 512
_MIN_FILLED = 10
"""A group may end a shard that is at least one part in this many full."""
_HEADER = re.compile(rb"(?=([A-Za-z0-9_-]+\.[a-z0-9.]+)\0).{124}([0-7]{11}).{21}0.{100}ustar\0", re.DOTALL)
"""A ustar header: name at byte 0, up to a zero byte; size in octal at 124; type "plain file" at 156; magic at 257."""
_FIX = "run `dvc checkout` or `dvc pull` to get a good copy, or `dvc repro` to write it again"


class _Shard(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^\d{5,}\.tar$")]
    num_samples: PositiveInt
    num_bytes: Annotated[int, Field(ge=2 * _BLOCK)]
    sha256: str


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1]
    num_samples: NonNegativeInt
    shards: list[_Shard]


class Writer:
    """A context manager that writes one split, sample by sample, and then `index.json`, unless there was an error."""

    def __init__(self, directory: Path, num_samples_per_shard: int) -> None:
        self._directory = directory
        self._num_samples_per_shard = num_samples_per_shard
        self._parts: tuple[str, ...] | None = None
        self._shards: list[_Shard] = []
        self._open: ExitStack | None = None
        self._group: str | None = None
        self._num_in_shard = 0
        self.num_samples = 0
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, key: str, parts: Mapping[str, bytes], group: str = "") -> None:
        """Append a sample. All samples of a split have the same part names.

        A shard ends when it is full, or at the end of a group (say, a user's tar) if it is at least a tenth full. So a
        group that is added to a corpus leaves the shards of the others unchanged, unless it, or the rest of the group
        before it, is smaller than that and shares a shard with its neighbour.
        """
        assert KEY_PATTERN.fullmatch(key), f"not a key: {key!r}"
        assert all(_PART.fullmatch(part) and len(part) <= 18 for part in parts), f"{key}: not parts: {list(parts)}"
        names = tuple(sorted(parts))
        self._parts = self._parts or names
        assert names == self._parts, f"{key}: parts {names} in a split of {self._parts}"
        is_full = self._num_in_shard == self._num_samples_per_shard
        ends_with_group = group != self._group and _MIN_FILLED * self._num_in_shard >= self._num_samples_per_shard
        if self._open is None or is_full or ends_with_group:
            self._close_shard()
            self._open_shard()
        self._group = group
        self._tar.write({"__key__": key, **parts})
        self._num_in_shard += 1
        self.num_samples += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            if self._open is not None:
                self._open.close()
            return
        self._close_shard()
        index = _Index(format=1, num_samples=self.num_samples, shards=self._shards)
        (self._directory / "index.json").write_text(index.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def _open_shard(self) -> None:
        # webdataset imports torch, which readers and a refused corpus do not need.
        from webdataset.writer import TarWriter

        self._path = self._directory / f"{len(self._shards):05d}.tar"
        self._open = ExitStack()
        file = self._open.enter_context(self._path.open("wb"))
        # mtime: bytes must not depend on when they are written, or everything downstream would run again.
        self._tar = self._open.enter_context(TarWriter(file, encoder=False, mtime=0))

    def _close_shard(self) -> None:
        if self._open is None:
            return
        self._open.close()
        self._open = None
        count, self._num_in_shard = self._num_in_shard, 0
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._path.stat().st_size
        self._shards.append(_Shard(name=self._path.name, num_samples=count, num_bytes=size, sha256=digest))


def write(directory: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]], num_samples_per_shard: int) -> None:
    """Write a whole split: equal samples in equal order give equal bytes."""
    with Writer(directory, num_samples_per_shard) as writer:
        for key, parts in samples:
            writer.write(key, parts)


class Shards:
    """A split for reading: `shards[i]` is the i-th sample as {part name: bytes}, which costs one read of its bytes.

    Holds no open file: it can be pickled, and used in forked workers.

    Raises:
        IntegrityError: index or shard missing, of another size or (if `verify`) another SHA-256 than the index says,
            damaged, or with another number of samples.
    """

    def __init__(self, directory: Path, verify: bool = True) -> None:
        index, self.sha256 = _read_index(directory)
        self.directory = directory
        self.keys: list[str] = []
        self.parts: tuple[str, ...] = ()
        starts: list[int] = [0]
        tables: list[np.ndarray] = []
        for shard in index.shards:
            table = self._read_shard(directory / shard.name, shard, verify)
            tables.append(table)
            starts.append(starts[-1] + len(table))
        self.shard_sha256 = [shard.sha256 for shard in index.shards]
        self._paths = [str(directory / shard.name) for shard in index.shards]
        self._starts = np.array(starts)
        self._table = np.concatenate(tables) if tables else np.empty((0, 0, 2), np.int64)
        if not starts[-1] == len(set(self.keys)) == index.num_samples:
            found = f"{starts[-1]} samples with {len(set(self.keys))} different keys"
            raise IntegrityError(str(directory / "index.json"), found, f"{index.num_samples} samples", _FIX)

    @property
    def num_shards(self) -> int:
        """Number of tars."""
        return len(self._paths)

    def shard_samples(self, shard: int) -> range:
        """Numbers of the samples in a shard."""
        return range(int(self._starts[shard]), int(self._starts[shard + 1]))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> dict[str, bytes]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        # Parts of a sample are neighbours in the tar: one read gets all of them, with the headers in between.
        spans: list[list[int]] = self._table[i].tolist()
        start, (last, size) = spans[0][0], spans[-1]
        file = os.open(self._paths[int(np.searchsorted(self._starts, i, side="right")) - 1], os.O_RDONLY)
        try:
            data = os.pread(file, last + size - start, start)
        finally:
            os.close(file)
        return {part: data[at - start : at - start + n] for part, (at, n) in zip(self.parts, spans, strict=True)}

    def images(self, numbers: Sequence[int]) -> 'UInt8[Tensor, "b 3 h w"]':
        """The decoded images of samples: their parts `png`."""
        return images.to_tensor([self[number]["png"] for number in numbers])

    def _read_shard(self, path: Path, shard: _Shard, verify: bool) -> np.ndarray:
        """Append the keys to `self.keys`; return offset and size of every part as int64 [samples, parts, 2]."""
        if not path.is_file():
            raise IntegrityError(str(path), "no such file", f"{shard.num_bytes} bytes", _FIX)
        if path.stat().st_size != shard.num_bytes:
            raise IntegrityError(str(path), f"{path.stat().st_size} bytes", f"{shard.num_bytes} bytes", _FIX)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if verify and (digest := hashlib.sha256(data).hexdigest()) != shard.sha256:
                raise IntegrityError(str(path), f"SHA-256 {digest}", f"SHA-256 {shard.sha256} as in index.json", _FIX)
            samples: dict[str, list[tuple[str, int, int]]] = {}
            for name, offset, size in _members(path, data):
                key, _, part = name.partition(".")
                samples.setdefault(key, []).append((part, offset, size))
        for key, members in samples.items():
            names = tuple(part for part, _, _ in members)
            self.parts = self.parts or names
            if names != self.parts:
                expected = f"parts {', '.join(self.parts)}"
                raise IntegrityError(f"{path}: {key}", f"parts {', '.join(names)}", expected, _FIX)
        if len(samples) != shard.num_samples:
            expected = f"{shard.num_samples} samples as in index.json"
            raise IntegrityError(str(path), f"{len(samples)} samples", expected, _FIX)
        self.keys += samples
        return np.array([[member[1:] for member in members] for members in samples.values()], np.int64)


def _read_index(directory: Path) -> tuple[_Index, str]:
    path = directory / "index.json"
    if not path.is_file():
        raise IntegrityError(str(path), "no such file", "the index of a split", _FIX)
    data = path.read_bytes()
    try:
        return _Index.model_validate_json(data), hashlib.sha256(data).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise IntegrityError(str(path), f"{place}: {first['msg']}", "the index of a split", _FIX) from None


def _members(path: Path, data: mmap.mmap) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every member of a tar made of plain ustar files, as `Writer` makes them.

    Python's tarfile takes 18 us a member and ends silently at the first damaged header.
    """
    offset = 0
    while data[offset : offset + _BLOCK].strip(b"\0"):
        header = _HEADER.match(data, offset)
        if header is None:
            raise IntegrityError(
                f"{path}: byte {offset}", "not the header of a plain file", "a shard of `prepare`", _FIX
            )
        size = int(header[2], 8)
        yield header[1].decode("ascii"), offset + _BLOCK, size
        # A header is one block; contents are padded to whole blocks.
        offset += _BLOCK + -(-size // _BLOCK) * _BLOCK
    # A tar ends in at least two blocks of zeros, which must reach to the end of the file.
    if len(data) - offset < 2 * _BLOCK or len(data) % _BLOCK or data[offset:].strip(b"\0"):
        found = "the end is cut or followed by data"
        raise IntegrityError(f"{path}: byte {offset}", found, "zeros up to the end of the file", _FIX)
