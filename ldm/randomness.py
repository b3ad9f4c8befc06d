"""Every random number of a run is a pure function of (seed, purpose, counters).

Nothing here depends on rank, worker, wall clock or earlier draws. So a resumed run needs one integer, the step, and a
run on another number of processes sees the same samples, noise, times, captions and drops.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm.core.buckets import Buckets, Numbers

_NUM_ROUNDS = 8
_ROWS_PER_BLOCK = 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, *purpose: str | int) -> int:
    """A 63-bit number that belongs to `(seed, *purpose)`: the first bits of the BLAKE2b hash of the parts.

    Parts are hashed as JSON, so `("a", 12)`, `("a", 1, 2)`, `("a1", 2)` and `("a", "12")` give unrelated numbers.
    """
    parts = [int(part) if isinstance(part, int | np.integer) else part for part in (seed, *purpose)]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator whose stream belongs to `(seed, *purpose)`. Seed 0 is a seed like any other."""
    return torch.Generator().manual_seed(key(seed, *purpose))


def normal(rows: slice, shape: Sequence[int], seed: int, *purpose: str | int) -> Tensor:
    """Rows of an endless float32 table of standard normal numbers, each row of this shape: [rows, *shape].

    Blocks of rows have generators of their own, so a process draws what it needs of a global batch, and no more than
    the rest of the first and the last block besides.
    """
    first = rows.start // _ROWS_PER_BLOCK
    numbers = range(first, -(-rows.stop // _ROWS_PER_BLOCK))
    blocks = [torch.randn(_ROWS_PER_BLOCK, *shape, generator=generator(seed, *purpose, number)) for number in numbers]
    skipped = first * _ROWS_PER_BLOCK
    return torch.cat(blocks)[rows.start - skipped : rows.stop - skipped]


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014, section 6): a bijection that scatters every bit."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _feistel(x: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], half_bits: int) -> npt.NDArray[np.uint64]:
    """One keyed permutation of `[0, 4^half_bits)` per entry: a Feistel network (Luby and Rackoff 1988)."""
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = x >> bits, x & mask
    for round_number in range(_NUM_ROUNDS):
        scattered = _mix(right ^ _mix(keys + np.uint64(round_number)))
        left, right = right, left ^ ((scattered >> np.uint64(32)) & mask)
    return (left << bits) | right


def order(positions: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Sample numbers at global `positions` of an endless stream that visits each of `count` samples once per epoch.

    Epoch `e` covers positions `[e * count, (e + 1) * count)` and has a permutation of its own: a Feistel network over
    the next power of four, cycle-walked back into the range (Black and Rogaway 2002, section 3). No permutation is held
    in memory, so 10^9 samples cost nothing.

    positions: [b], any non-negative numbers in any order; returns [b] in `[0, count)`.
    """
    assert count > 0, "an order needs at least one sample"
    assert positions.size == 0 or int(positions.min()) >= 0, "positions start at 0"
    # Every epoch has a key, and so a permutation, of its own.
    epochs, inverse = np.unique(positions // count, return_inverse=True)
    keys = np.array([key(seed, "order", int(epoch)) for epoch in epochs], dtype=np.uint64)[inverse]
    # Permute [0, 4^half_bits), the smallest such range that holds all samples.
    half_bits = max(1, -(-(count - 1).bit_length() // 2))
    samples = _feistel((positions % count).astype(np.uint64), keys, half_bits)
    # Cycle walking: permute what falls outside the samples again, until it is inside.
    outside = samples >= count
    while outside.any():
        samples[outside] = _feistel(samples[outside], keys[outside], half_bits)
        outside = samples >= count
    return samples.astype(np.int64)


class Draw(NamedTuple):
    """The samples of a global batch."""

    bucket: int
    samples: Numbers
    """Numbers in the split, [b]."""
    epochs: Numbers
    """The epoch of its bucket that each belongs to, [b]."""


class Order:
    """An endless order of batches, each of samples of one bucket, and so of one size on all processes.

    Every bucket is a stream of its own that visits each of its samples once per epoch, as `order` says, cut into
    batches of `batch_size`. A batch belongs to the epoch in which it starts, so an epoch has the batches of all buckets
    that start in it, in random order. In the long run, buckets are therefore visited as often as they have samples,
    and after any number of epochs each sample was drawn as often as any other, but for one batch per bucket that
    reaches into the next epoch. Nothing is held in memory. One bucket is its stream.
    """

    def __init__(self, buckets: Buckets, batch_size: int, seed: int) -> None:
        assert len(buckets) and buckets.counts.min() > 0, "an order needs at least one sample"
        self._buckets, self._batch_size, self._seed = buckets, batch_size, seed

    def at_step(self, step: int) -> Draw:
        """The global batch of a step."""
        bucket, number = self._batch(step)
        positions = number * self._batch_size + np.arange(self._batch_size, dtype=np.int64)
        count = int(self._buckets.counts[bucket])
        numbers = order(positions, count, self._seed)
        return Draw(bucket, self._buckets.samples(bucket, numbers), positions // count)

    def _batch(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and the number of its batch among those of the bucket."""
        if len(self._buckets) == 1:
            return 0, step
        # The last epoch that starts no later than this step. The guess is never too low, since an epoch starts later
        # than after equally many full batches of all samples.
        epoch = step * self._batch_size // int(self._buckets.counts.sum())
        while (firsts := self._first_batches(epoch)).sum() > step:
            epoch -= 1
        ends = np.cumsum(self._first_batches(epoch + 1) - firsts)
        place = np.array([step - firsts.sum()], dtype=np.int64)
        slot = int(order(place, int(ends[-1]), key(self._seed, "buckets", epoch))[0])
        bucket = int(np.searchsorted(ends, slot, side="right"))
        return bucket, int(firsts[bucket]) + slot - int(ends[bucket - 1] if bucket else 0)

    def _first_batches(self, epoch: int) -> Numbers:
        """For each bucket the number of its first batch that starts in an epoch or later."""
        return -(-epoch * self._buckets.counts // self._batch_size)
