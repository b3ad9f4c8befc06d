"""Webdataset tars with an index: written deterministically, read strictly, any sample at random.

A split is a folder of `00000.tar`, `00001.tar`, ... and `index.json` with sample count, size and SHA-256 of each; in a
split of several image sizes also the one that all images of a shard have.
Sample KEY with parts "json" and "png" is two neighbouring members of a tar, KEY.json and KEY.png.
"""

import hashlib
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from ldm.core import images
from ldm.core.buckets import Buckets
from ldm.core.errors import IntegrityError
from ldm.core.params import Size

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
    size_px: Size | None = None
    """Height and width of its images, in a split of several sizes."""


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1]
    num_samples: NonNegativeInt
    shards: list[_Shard]


@dataclass
class _OpenShard:
    """A tar that is being written."""

    name: str
    stack: ExitStack
    tar: Any
    num_samples: int = 0
    group: str = ""


class Writer:
    """A context manager that writes one split, sample by sample, and then `index.json`, unless there was an error."""

    def __init__(self, directory: Path, num_samples_per_shard: int) -> None:
        self._directory = directory
        self._num_samples_per_shard = num_samples_per_shard
        self._parts: tuple[str, ...] | None = None
        self._shards: dict[str, _Shard] = {}
        self._num_shards = 0
        self._open: dict[Size | None, _OpenShard] = {}
        self.num_samples = 0
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, key: str, parts: Mapping[str, bytes], group: str = "", size_px: Size | None = None) -> None:
        """Append a sample. All samples of a split have the same part names.

        Samples of different `size_px`, the height and width of the image, never share a shard; None = all images have
        one size. A shard ends when it is full, or at the end of a group (say, a user's tar) if it is at least a tenth
        full. So a group that is added to a corpus leaves the shards of the others unchanged, unless it, or the rest of
        the group before it, is smaller than that and shares a shard with its neighbour.
        """
        assert KEY_PATTERN.fullmatch(key), f"not a key: {key!r}"
        assert all(_PART.fullmatch(part) and len(part) <= 18 for part in parts), f"{key}: not parts: {list(parts)}"
        names = tuple(sorted(parts))
        self._parts = self._parts or names
        assert names == self._parts, f"{key}: parts {names} in a split of {self._parts}"
        shard = self._open.get(size_px)
        if shard is None or self._is_done(shard, group):
            self._close_shard(size_px)
            shard = self._open[size_px] = self._new_shard()
        shard.group = group
        shard.tar.write({"__key__": key, **parts})
        shard.num_samples += 1
        self.num_samples += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            for shard in self._open.values():
                shard.stack.close()
            return
        for size_px in list(self._open):
            self._close_shard(size_px)
        shards = [self._shards[name] for name in sorted(self._shards, key=lambda name: (len(name), name))]
        index = _Index(format=1, num_samples=self.num_samples, shards=shards)
        text = index.model_dump_json(indent=1, exclude_none=True)
        (self._directory / "index.json").write_text(text + "\n", encoding="utf-8")

    def _is_done(self, shard: _OpenShard, group: str) -> bool:
        is_full = shard.num_samples == self._num_samples_per_shard
        return is_full or (group != shard.group and _MIN_FILLED * shard.num_samples >= self._num_samples_per_shard)

    def _new_shard(self) -> _OpenShard:
        # webdataset imports torch, which readers and a refused corpus do not need.
        from webdataset.writer import TarWriter

        name, self._num_shards = f"{self._num_shards:05d}.tar", self._num_shards + 1
        stack = ExitStack()
        file = stack.enter_context((self._directory / name).open("wb"))
        # mtime: bytes must not depend on when they are written, or everything downstream would run again.
        return _OpenShard(name, stack, stack.enter_context(TarWriter(file, encoder=False, mtime=0)))

    def _close_shard(self, size_px: Size | None) -> None:
        shard = self._open.pop(size_px, None)
        if shard is None:
            return
        shard.stack.close()
        path = self._directory / shard.name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._shards[shard.name] = _Shard(
            name=shard.name,
            num_samples=shard.num_samples,
            num_bytes=path.stat().st_size,
            sha256=digest,
            size_px=size_px,
        )


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
        self.buckets = Buckets([shard.size_px for shard in index.shards], [shard.num_samples for shard in index.shards])
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

    @property
    def image_sizes_px(self) -> list[Size]:
        """Height and width of the images of every bucket."""
        firsts = [int(self.buckets.samples(bucket, np.zeros(1, np.int64))[0]) for bucket in range(len(self.buckets))]
        pixels = [images.decode_png(self[first]["png"]) for first in firsts]
        return [(image.shape[0], image.shape[1]) for image in pixels]

    def images(self, numbers: Sequence[int]) -> 'UInt8[Tensor, "b 3 h w"]':
        """The decoded images of samples of one bucket: their parts `png`."""
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
