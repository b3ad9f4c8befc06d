"""Webdataset tars with an index: written deterministically, read strictly, any sample at random.

A split is a folder of `00000.tar`, `00001.tar`, ..., of `ends.npy` (where each sample ends in its tar) and `index.json`
(sample count, size and SHA-256 of each tar; in a split of several image sizes also the one that all images of a tar
have). Sample KEY with parts "json" and "webp" is two neighbouring members of a tar, KEY.json and KEY.webp. A reader
maps 4 bytes per sample, and opens and hashes only the tars that it reads from.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from jaxtyping import UInt8

from ldm.core import hashes, images, shards_index
from ldm.core.buckets import Buckets
from ldm.core.errors import IntegrityError
from ldm.core.lazy import Lazy
from ldm.core.params import Size
from ldm.core.shards_index import BLOCK, ENDS, FIX

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "val", "reworded", "unseen", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "val", "reworded", "unseen", "held_out")
"""`val` shows in other combinations what `train` shows, and `reworded` too, but with captions in sentence forms that no
other split has. `unseen` and `held_out` show compositions that no other split has. A corpus may do without these
three. Settings are chosen on `unseen`, and `held_out` is looked at once, after that."""
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""Legal keys: a key becomes a file name in a tar, and webdataset cuts names at the first dot."""
_PART = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)?")
_MIN_FILLED = 10
"""A group may end a shard that is at least one part in this many full."""


@dataclass
class _OpenShard:
    """A tar that is being written."""

    path: Path
    stack: ExitStack
    tar: Any
    num_samples: int = 0
    group: str = ""


class Writer:
    """A context manager that writes one split, sample by sample, and then its index, unless there was an error."""

    def __init__(self, directory: Path, num_samples_per_shard: int) -> None:
        self._directory = directory
        self._num_samples_per_shard = num_samples_per_shard
        self._parts: tuple[str, ...] | None = None
        self._contents = shards_index.Contents()
        self._num_shards = 0
        self._open: dict[Size | None, _OpenShard] = {}
        self.num_samples = 0
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, key: str, parts: Mapping[str, bytes], group: str = "", size_px: Size | None = None) -> None:
        """Append a sample. All samples of a split have the same part names, and keys of their own.

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
        self._contents.write(self._directory)

    def _is_done(self, shard: _OpenShard, group: str) -> bool:
        is_full = shard.num_samples == self._num_samples_per_shard
        return is_full or (group != shard.group and _MIN_FILLED * shard.num_samples >= self._num_samples_per_shard)

    def _new_shard(self) -> _OpenShard:
        # webdataset imports torch, which readers and a refused corpus do not need.
        from webdataset.writer import TarWriter

        path = self._directory / shards_index.name_of(self._num_shards)
        self._num_shards += 1
        stack = ExitStack()
        file = stack.enter_context(path.open("wb"))
        # mtime: bytes must not depend on when they are written, or everything downstream would run again.
        return _OpenShard(path, stack, stack.enter_context(TarWriter(file, encoder=False, mtime=0)))

    def _close_shard(self, size_px: Size | None) -> None:
        shard = self._open.pop(size_px, None)
        if shard is None:
            return
        shard.stack.close()
        found = self._contents.add(shard.path, size_px)
        assert found.num_samples == shard.num_samples, f"{shard.path}: two samples have one key"


def write(directory: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]], num_samples_per_shard: int) -> None:
    """Write a whole split: equal samples in equal order give equal bytes."""
    with Writer(directory, num_samples_per_shard) as writer:
        for key, parts in samples:
            writer.write(key, parts)


class Shards:
    """A split for reading: `shards[i]` is the i-th sample as {part name: bytes}, which costs one read of its bytes.

    A tar is opened when a sample of it is read, and hashed before, unless this machine has hashed it already. Holds no
    open file: it can be pickled, and used in forked workers.

    Raises:
        IntegrityError: the index is missing, damaged or contradicts itself. On reading: a tar is missing, or of another
            size or SHA-256 than the index says.
    """

    def __init__(self, directory: Path) -> None:
        index, self._ends, self.sha256 = shards_index.read(directory)
        self.directory = directory
        self.keys = Lazy(index.num_samples, self._read_keys)
        """Keys of all samples, which are read from the tars."""
        self.keys_sha256 = index.keys_sha256
        """Splits with equal ones have equal keys in equal order."""
        self.buckets = Buckets([shard.size_px for shard in index.shards], [shard.num_samples for shard in index.shards])
        self.shard_sha256 = [shard.sha256 for shard in index.shards]
        self._shards = index.shards
        self._starts: list[int] = np.cumsum([0, *(shard.num_samples for shard in index.shards)]).tolist()
        self._checked: set[int] = set()

    @property
    def num_shards(self) -> int:
        """Number of tars."""
        return len(self._shards)

    @property
    def files(self) -> list[tuple[Path, str]]:
        """Every tar with its SHA-256."""
        return [(self.directory / shard.name, shard.sha256) for shard in self._shards]

    def shard_samples(self, shard: int) -> range:
        """Numbers of the samples in a shard."""
        return range(self._starts[shard], self._starts[shard + 1])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> dict[str, bytes]:
        return next(self.read([i]))

    def __iter__(self) -> Iterator[dict[str, bytes]]:
        return self.read(range(len(self)))

    def read(self, numbers: Iterable[int]) -> Iterator[dict[str, bytes]]:
        """Samples of these numbers, in their order; a tar stays open while neighbours in the order are in it."""
        for path, start, data in self._pieces(numbers):
            members = list(shards_index.members(path, data, start))
            if not members or members[-1].end != len(data):
                found = f"no sample of {len(data)} bytes"
                raise IntegrityError(f"{path}: byte {start}", found, f"a sample of {len(data)} bytes as in {ENDS}", FIX)
            yield {name.partition(".")[2]: data[begin:stop] for name, begin, stop, _ in members}

    @property
    def image_sizes_px(self) -> list[Size]:
        """Height and width of the images of every bucket."""
        firsts = [int(self.buckets.samples(bucket, np.zeros(1, np.int64))[0]) for bucket in range(len(self.buckets))]
        pixels = [images.decode(self.image(first)) for first in firsts]
        return [(image.shape[0], image.shape[1]) for image in pixels]

    def images(self, numbers: Sequence[int]) -> 'UInt8[Tensor, "b 3 h w"]':
        """The decoded images of samples of one bucket."""
        return images.to_tensor(list(self.encoded(numbers)))

    def encoded(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The encoded images of samples, each read when it is asked for."""
        return map(_image, self.read(numbers))

    def image(self, i: int) -> bytes:
        """The encoded image of a sample."""
        return _image(self[i])

    def verify(self) -> None:
        """Hash every tar now, whatever this machine remembers. IntegrityError: one is missing or damaged."""
        for path, sha256 in self.files:
            hashes.check_file(path, sha256)

    def _read_keys(self, numbers: Iterable[int]) -> Iterator[str]:
        for path, start, data in self._pieces(numbers, most=BLOCK):
            yield next(shards_index.members(path, data, start)).name.partition(".")[0]

    def _pieces(self, numbers: Iterable[int], most: int | None = None) -> Iterator[tuple[str, int, bytes]]:
        """For each sample: its tar, where it starts there, and its bytes, or the first `most` of them."""
        for shard, neighbours in groupby(numbers, self._shard_of):
            path = self._checked_path(shard)
            file = os.open(path, os.O_RDONLY)
            try:
                for i in neighbours:
                    start = 0 if i == self._starts[shard] else int(self._ends[i - 1]) * BLOCK
                    size = int(self._ends[i]) * BLOCK - start if most is None else most
                    yield path, start, os.pread(file, size, start)
            finally:
                os.close(file)

    def _shard_of(self, i: int) -> int:
        if not 0 <= i < self._starts[-1]:
            raise IndexError(i)
        return bisect_right(self._starts, i) - 1

    def _checked_path(self, shard: int) -> str:
        """The path of a tar. IntegrityError unless it is there and whole; it is hashed once per machine."""
        facts = self._shards[shard]
        path = f"{self.directory}/{facts.name}"
        if shard not in self._checked:
            facts.check_size(Path(path))
            hashes.check_once(Path(path), facts.sha256)
            self._checked.add(shard)
        return path


def _image(sample: Mapping[str, bytes]) -> bytes:
    """The part `webp`, or `png` as in samples and in shards of former versions."""
    return sample["webp" if "webp" in sample else "png"]
