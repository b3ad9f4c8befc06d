"""Captions of a split as `prepare` wrote them: several texts per sample, in the order of the images."""

import json
from pathlib import Path

from ldm.core.errors import IntegrityError
from ldm.core.shards import Shards


class Captions:
    """All captions of a split: `texts[i]` are those of sample i; `sha256` is the hash of the split's index; `buckets`
    are those of the images."""

    def __init__(self, directory: Path) -> None:
        """IntegrityError: a shard is missing or corrupt."""
        shards = Shards(directory)
        self.directory, self.sha256, self.keys = directory, shards.sha256, shards.keys
        self.buckets = shards.buckets
        self.texts: list[list[str]] = [json.loads(shards[i]["json"])["captions"] for i in range(len(shards))]

    def __len__(self) -> int:
        return len(self.texts)

    def check_keys(self, images: Shards) -> None:
        """IntegrityError unless an image split has the same samples in the same order."""
        if images.keys != self.keys:
            pairs = enumerate(zip(images.keys, self.keys, strict=False))
            first = next((i for i, (image, caption) in pairs if image != caption), min(len(images), len(self)))
            found = f"other keys than {images.directory} from sample {first} on ({len(self)} and {len(images)} samples)"
            raise IntegrityError(str(self.directory), found, "equal keys in equal order", "run `dvc repro prepare`")
