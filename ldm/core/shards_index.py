"""The index of a split of shards: what its tars hold, and where each sample ends."""

import hashlib
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import UInt32
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from ldm.core import hashes
from ldm.core.errors import IntegrityError
from ldm.core.params import Size

INDEX, ENDS = "index.json", "ends.npy"
FIX = "run `dvc checkout` or `dvc pull` to get a good copy, or `dvc repro` to write it again"
BLOCK = 512
Ends = UInt32[np.ndarray, "samples"]
"""For each sample, the number of the block behind it in its tar."""
_END = np.dtype("<u4")
_HEADER = re.compile(rb"(?=([A-Za-z0-9_-]+\.[a-z0-9.]+)\0).{124}([0-7]{11}).{21}0.{100}ustar\0", re.DOTALL)
"""A ustar header: name at byte 0, up to a zero byte; size in octal at 124; type "plain file" at 156; magic at 257."""


class Shard(BaseModel):
    """What an index says of a tar."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^\d{5,}\.tar$")]
    num_samples: PositiveInt
    num_bytes: Annotated[int, Field(ge=2 * BLOCK)]
    sha256: str
    size_px: Size | None = None
    """Height and width of its images, in a split of several sizes."""

    def check_size(self, path: Path) -> None:
        """IntegrityError unless the tar is there and has its size."""
        if not path.is_file():
            raise IntegrityError(str(path), "no such file", f"{self.num_bytes} bytes", FIX)
        if (found := path.stat().st_size) != self.num_bytes:
            raise IntegrityError(str(path), f"{found} bytes", f"{self.num_bytes} bytes", FIX)


class _FormerIndex(BaseModel):
    """An index without `ends.npy`, as former commits wrote it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1]
    num_samples: NonNegativeInt
    shards: list[Shard]


class Index(BaseModel):
    """The content of `index.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[2]
    num_samples: NonNegativeInt
    shards: list[Shard]
    keys_sha256: str
    """Of the keys of all samples, one a line."""
    ends_sha256: str
    """Of the file `ends.npy`."""
    sha256: str
    """Of all fields above, so that damage to any of them shows."""

    @classmethod
    def of(cls, shards: list[Shard], keys_sha256: str, ends_sha256: str) -> Self:
        """The index of these tars."""
        count = sum(shard.num_samples for shard in shards)
        fields = {"keys_sha256": keys_sha256, "ends_sha256": ends_sha256, "sha256": ""}
        return cls(format=2, num_samples=count, shards=shards, **fields).sealed()

    def sealed(self) -> Self:
        """With the right `sha256`."""
        values = self.model_dump_json(exclude={"sha256"}, exclude_none=True)
        return self.model_copy(update={"sha256": hashlib.sha256(values.encode()).hexdigest()})

    def write(self, directory: Path) -> None:
        """Write `index.json`."""
        (directory / INDEX).write_text(self.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")


_ANY_INDEX: TypeAdapter[Index | _FormerIndex] = TypeAdapter(
    Annotated[Index | _FormerIndex, Field(discriminator="format")]
)


class Contents:
    """What an index says of a split, gathered tar by tar, in any order."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self._ends: list[Ends] = []
        self._keys = hashlib.sha256()
        self._waiting: dict[str, tuple[Shard, Ends, bytes]] = {}

    def add(self, path: Path, size_px: Size | None = None) -> Shard:
        """Read a tar, whose images have this size. IntegrityError: it is not as `Writer` makes it, or damaged."""
        keys, ends = _scan(path)
        size, sha256 = path.stat().st_size, hashes.sha256_file(path)
        shard = Shard(name=path.name, num_samples=len(keys), num_bytes=size, sha256=sha256, size_px=size_px)
        self._waiting[path.name] = shard, ends, "".join(f"{key}\n" for key in keys).encode()
        # One of another image size may have been opened before it and still be open.
        while found := self._waiting.pop(name_of(len(self.shards)), None):
            self.shards.append(found[0])
            self._ends.append(found[1])
            self._keys.update(found[2])
        return shard

    @property
    def ends(self) -> Ends:
        """The ends of all samples."""
        return np.concatenate([np.empty(0, _END), *self._ends])

    @property
    def keys_sha256(self) -> str:
        """SHA-256 of all keys, one a line."""
        return self._keys.hexdigest()

    def write(self, directory: Path) -> None:
        """Write `ends.npy` and `index.json`."""
        assert not self._waiting, f"{directory}: a tar is missing before {min(self._waiting)}"
        np.save(directory / ENDS, self.ends)
        Index.of(self.shards, self.keys_sha256, hashes.sha256_file(directory / ENDS)).write(directory)


def read(directory: Path) -> tuple[Index, Ends, str]:
    """The index of a split, the ends of its samples, mapped into memory, and the SHA-256 of `index.json`.

    IntegrityError: one is missing, damaged, or contradicts the other.
    """
    path = directory / INDEX
    if not path.is_file():
        raise IntegrityError(str(path), "no such file", "the index of a split", FIX)
    data = path.read_bytes()
    try:
        index = _ANY_INDEX.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise IntegrityError(str(path), f"{place}: {first['msg']}", "the index of a split", FIX) from None
    if isinstance(index, _FormerIndex):
        index, ends = _upgraded(directory, index)
    else:
        if (sealed := index.sealed()) != index:
            raise IntegrityError(str(path), f"fields with SHA-256 {sealed.sha256}", index.sha256, FIX)
        hashes.check_once(directory / ENDS, index.ends_sha256)
        ends = np.asarray(np.load(directory / ENDS, mmap_mode="r", allow_pickle=False))
    _check_counts(path, index, len(ends))
    return index, ends, hashlib.sha256(data).hexdigest()


def name_of(shard: int) -> str:
    """The file name of a tar, by its number."""
    return f"{shard:05d}.tar"


def _check_counts(path: Path, index: Index, num_ends: int) -> None:
    """IntegrityError unless an index agrees with itself."""
    names, count = [shard.name for shard in index.shards], sum(shard.num_samples for shard in index.shards)
    if names != [name_of(number) for number in range(len(names))]:
        raise IntegrityError(str(path), f"tars {', '.join(names)}", f"{name_of(0)}, {name_of(1)}, ...", FIX)
    if not count == num_ends == index.num_samples:
        found = f"{count} samples in all tars, {num_ends} in {ENDS}"
        raise IntegrityError(str(path), found, f"{index.num_samples} samples", FIX)


def _upgraded(directory: Path, former: _FormerIndex) -> tuple[Index, Ends]:
    """What an index of today says of a split of a former commit. All its tars are read for it."""
    contents = Contents()
    for shard in former.shards:
        path = directory / shard.name
        shard.check_size(path)
        hashes.check_once(path, shard.sha256)
        if (count := contents.add(path, shard.size_px).num_samples) != shard.num_samples:
            raise IntegrityError(str(path), f"{count} samples", f"{shard.num_samples} samples as in {INDEX}", FIX)
    index = Index.of(contents.shards, contents.keys_sha256, ends_sha256="")
    return index.model_copy(update={"num_samples": former.num_samples}), contents.ends


class Member(NamedTuple):
    """A file in a tar: its content is bytes `begin` to `stop`, the next header is at `end`."""

    name: str
    begin: int
    stop: int
    end: int


def members(path: str, data: mmap.mmap | bytes, start: int = 0) -> Iterator[Member]:
    """The members in some bytes of a tar, up to a block of zeros. Offsets are those in `data`.

    path, start: the tar and where in it `data` starts, for messages. IntegrityError: a header is not one of a plain
    ustar file, as `Writer` makes them. (Python's tarfile takes 18 us a member and ends silently at a damaged header.)
    """
    offset = 0
    while data[offset : offset + BLOCK].strip(b"\0"):
        header = _HEADER.match(data, offset)
        if header is None:
            found = "not the header of a plain file"
            raise IntegrityError(f"{path}: byte {start + offset}", found, "a shard of `prepare`", FIX)
        begin = offset + BLOCK
        stop = begin + int(header[2], 8)
        # A header is one block; contents are padded to whole blocks.
        offset = begin + -(-(stop - begin) // BLOCK) * BLOCK
        yield Member(header[1].decode("ascii"), begin, stop, offset)


def _scan(path: Path) -> tuple[list[str], Ends]:
    """Keys and ends of all samples of a tar. IntegrityError: as `members`, or the tar is cut or goes on too long."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        ends: dict[str, int] = {}
        end = 0
        for name, _, _, end in members(str(path), data):
            ends[name.partition(".")[0]] = end // BLOCK
        # A tar ends in at least two blocks of zeros, which must reach to the end of the file.
        if len(data) - end < 2 * BLOCK or len(data) % BLOCK or data[end:].strip(b"\0"):
            found = "the end is cut or followed by data"
            raise IntegrityError(f"{path}: byte {end}", found, "zeros up to the end of the file", FIX)
    return list(ends), np.fromiter(ends.values(), _END, len(ends))
