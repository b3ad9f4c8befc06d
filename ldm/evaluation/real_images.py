"""The real images of a corpus, by split and number, in the order of the shards or scattered over a split."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ldm import randomness
from ldm.core.errors import IntegrityError
from ldm.core.params import Size
from ldm.core.shards import Shards
from ldm.sampling.samples import Prompt

Origin = tuple[str, int]
"""A split, and the number of a sample in it."""
_NUM_AT_ONCE = 4096


class RealImages:
    """The image shards of all splits."""

    def __init__(self, directory: Path, splits: Sequence[str]) -> None:
        self._splits = {split: Shards(directory / split) for split in splits}

    @property
    def sha256(self) -> dict[str, str]:
        """Hash of the index of each split."""
        return {f"images_{split}": shards.sha256 for split, shards in self._splits.items()}

    @property
    def sizes_px(self) -> set[Size]:
        """Height and width of the images of all buckets."""
        return {size for shards in self._splits.values() for size in shards.image_sizes_px}

    def count(self, split: str) -> int:
        """Number of samples in a split."""
        return len(self._splits[split])

    def png(self, origin: Origin) -> bytes:
        """The image of one sample, encoded."""
        split, number = origin
        return self._splits[split].image(number)

    def origin(self, prompt: Prompt) -> Origin:
        """Where the real image of a prompt is. IntegrityError: it is no longer there."""
        shards, number = self._splits[prompt.split], prompt.sample
        if number is None or number >= len(shards) or shards.keys[number] != prompt.key:
            found, expected = f"no sample {prompt.key} at {number}", "the images that the prompts come from"
            raise IntegrityError(str(shards.directory), found, expected, "run `dvc repro sample`")
        return prompt.split, number


def scattered(real: RealImages, split: str) -> Iterator[Origin]:
    """Samples of a split in a fixed random order, so that the first few represent all, even in a sorted corpus."""
    count, seed = real.count(split), randomness.key(0, "scattered", split)
    for start in range(0, count, _NUM_AT_ONCE):
        positions = np.arange(start, min(start + _NUM_AT_ONCE, count), dtype=np.int64)
        yield from ((split, number) for number in randomness.order(positions, count, seed).tolist())
