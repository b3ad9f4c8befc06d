"""Captions of a split as `prepare` wrote them: several texts per sample, in the order of the images."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ldm.core.errors import IntegrityError
from ldm.core.lazy import Lazy
from ldm.core.shards import Shards


class Captions:
    """All captions of a split, none of which is held: `texts[i]` reads those of sample i from its shard, in about
    10 us. `keys` are the keys of the samples, `sha256` is the hash of the split's index, and
    `buckets` are those of the images."""

    def __init__(self, directory: Path) -> None:
        """IntegrityError: the index is missing or corrupt; on reading, a shard is."""
        self.shards = Shards(directory)
        self.directory, self.sha256, self.keys = directory, self.shards.sha256, self.shards.keys
        self.buckets = self.shards.buckets
        self.texts = Lazy(len(self.shards), self._read)

    def __len__(self) -> int:
        return len(self.shards)

    def check_keys(self, images: Shards) -> None:
        """IntegrityError unless an image split has the same samples in the same order."""
        if images.keys_sha256 != self.shards.keys_sha256:
            pairs = enumerate(zip(images.keys, self.keys, strict=False))
            first = next((i for i, (image, caption) in pairs if image != caption), min(len(images), len(self)))
            found = f"other keys than {images.directory} from sample {first} on ({len(self)} and {len(images)} samples)"
            raise IntegrityError(str(self.directory), found, "equal keys in equal order", "run `dvc repro prepare`")

    def _read(self, numbers: Iterable[int]) -> Iterator[list[str]]:
        return (json.loads(sample["json"])["captions"] for sample in self.shards.read(numbers))
