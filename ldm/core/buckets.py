"""The buckets of a split: samples whose images have one size, as batches need them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ldm.core.params import Size

Numbers = npt.NDArray[np.int64]


class Buckets:
    """Which samples of a split have which size. All samples of a shard have one, so this costs memory per shard, not
    per sample. A split without sizes is one bucket."""

    def __init__(self, sizes_px: Sequence[Size | None], counts: Sequence[int]) -> None:
        """sizes_px, counts: size of the images and number of samples, of every shard in order."""
        found = sorted(set(sizes_px), key=_widest_last)
        starts = np.cumsum([0, *counts], dtype=np.int64)
        shards = [np.array([i for i, each in enumerate(sizes_px) if each == size]) for size in found]
        self.sizes_px: list[Size | None] = found
        """Of each bucket, from the tallest shape to the widest; None = the split does not say."""
        self.counts: Numbers = np.array([sum(counts[i] for i in numbers) for numbers in shards], np.int64)
        """Samples of each bucket."""
        self._ends, self._bucket_of_shard = starts[1:], np.array([found.index(size) for size in sizes_px], np.int64)
        self._starts = [starts[numbers] for numbers in shards]
        self._places = [np.cumsum([0, *(counts[i] for i in numbers)], dtype=np.int64) for numbers in shards]

    def __len__(self) -> int:
        return len(self.sizes_px)

    def samples(self, bucket: int, numbers: Numbers) -> Numbers:
        """Sample numbers in the split of the samples `numbers` of a bucket, which are counted from 0 in the same
        order. Shapes: [b] each."""
        places = self._places[bucket]
        shards = np.searchsorted(places, numbers, side="right") - 1
        return self._starts[bucket][shards] + numbers - places[shards]

    def of(self, samples: Numbers) -> Numbers:
        """The bucket of each of some samples, given by their numbers in the split. Shapes: [b] each."""
        shards = np.searchsorted(self._ends, samples, side="right")
        return self._bucket_of_shard[shards]

    def batches(self, count: int, size: int) -> list[Numbers]:
        """The first samples of every bucket, `count` in all and of each bucket its share, in batches of at most `size`
        samples of one bucket. With one bucket these are the first samples of the split."""
        ends = np.cumsum([0, *self.counts])
        shares = np.diff(ends * min(count, int(ends[-1])) // max(int(ends[-1]), 1)).tolist()
        return [
            self.samples(bucket, np.arange(start, min(start + size, share), dtype=np.int64))
            for bucket, share in enumerate(shares)
            for start in range(0, share, size)
        ]


def _widest_last(size: Size | None) -> tuple[float, Size]:
    return (0.0, (0, 0)) if size is None else (size[1] / size[0], size)
