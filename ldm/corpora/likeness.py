"""Which pictures are alike: a perceptual hash for those that look the same, an exact one for those that are the same.

The perceptual hash has 64 bits, from the signs of the low frequencies of the brightness (pHash, Zauner 2010, by the
package `imagehash`). Saving a picture again as a JPEG or in another size leaves it equal, or changes a few bits.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import imagehash
import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

from ldm.core.shards import Split
from ldm.corpora.pairs import ByContent, split_of

_NUM_BITS = 64
_NUM_NEIGHBOURS = 256
"""With how many others a picture is compared in each of the sorted orders."""
_NUM_AT_ONCE = 1 << 20
"""Pictures of which all pairs are in memory."""
_LEAST_CONTRAST = 8
"""Levels of 255 between darkest and brightest pixel. In a flatter picture noise decides about the perceptual hash."""

_Places = Int64[np.ndarray, " k"]


@dataclass(frozen=True)
class Likeness:
    """Two hashes of a picture, 16 hexadecimal digits each."""

    looks: str
    """Equal for pictures that look the same; for a flat picture equal to `pixels`."""
    pixels: str
    """Equal for pictures whose pixels are the same."""


def of(picture: UInt8[np.ndarray, "h w 3"]) -> Likeness:
    """The hashes of a picture, which depend on its size and pixels alone."""
    digest = hashlib.blake2b(f"{picture.shape}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(picture).data)
    grey = Image.fromarray(picture).convert("L")
    darkest, brightest = grey.getextrema()
    is_flat = brightest - darkest < _LEAST_CONTRAST  # pyright: ignore[reportOperatorIssue]
    pixels = digest.hexdigest()
    return Likeness(pixels if is_flat else str(imagehash.phash(grey)), pixels)


def split(likeness: Likeness, rule: ByContent) -> Split:
    """The split of a picture: a function of how it looks and of the seed, so adding pictures moves none."""
    return split_of(likeness.looks, rule.val_fraction, rule.seed)


def nearest(
    looks: UInt64[np.ndarray, " n"], others: UInt64[np.ndarray, " m"], most: int
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """For each of `others` the place of the nearest of `looks`, and the bits in which they differ, of those with at
    most `most` of 64; the place is -1 where there is none, and the bits are `most` + 1. Of equally near ones it is the
    first. The search is that of `_alike`."""
    best = _Best(len(others), most)
    for one, other, bits in _alike(np.concatenate([looks, others]), most):
        first, second = np.minimum(one, other), np.maximum(one, other)
        is_across = (first < len(looks)) & (second >= len(looks))
        best.add(second[is_across] - len(looks), first[is_across], bits[is_across])
    return best.found()


def nearest_before(
    looks: UInt64[np.ndarray, " n"], most: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The same for each of `looks` and those before it."""
    best = _Best(len(looks), most)
    for one, other, bits in _alike(looks, most):
        best.add(np.maximum(one, other), np.minimum(one, other), bits)
    return best.found()


class _Best:
    """The nearest partner of each of some pictures, so far."""

    def __init__(self, count: int, most: int) -> None:
        self._none = (most + 1) << 32
        self._ranks = np.full(count, self._none, np.int64)
        """Bits and place in one number, of which the lowest is the best."""

    def add(self, places: _Places, partners: _Places, bits: _Places) -> None:
        np.minimum.at(self._ranks, places, bits << 32 | partners)

    def found(self) -> tuple[_Places, _Places]:
        """Places, -1 for none, and bits."""
        return np.where(self._ranks < self._none, self._ranks & 0xFFFFFFFF, -1), self._ranks >> 32


def _alike(looks: UInt64[np.ndarray, " n"], most: int) -> Iterator[tuple[_Places, _Places, _Places]]:
    """Pairs of places of pictures that differ in at most `most` bits, and the bits; some come several times.

    The bits are cut into `most` + 2 parts. Two numbers that differ in at most `most` bits are equal in two parts at
    least, so only those are compared that share two (Norouzi et al. 2012, "Fast Search in Hamming Space with
    Multi-Index Hashing"): those next to each other once the numbers are sorted with these parts in front. Every number
    is compared with `_NUM_NEIGHBOURS` at most, which keeps the time near-linear. Where more share two parts, those are
    compared that share the most bits after them.
    """
    edges = [_NUM_BITS * part // (most + 2) for part in range(most + 3)]
    for front in combinations(pairwise(edges), 2):
        rest = [part for part in pairwise(edges) if part not in front]
        sorted_looks, shared = _rearranged(looks, [*front, *rest]), _NUM_BITS - sum(high - low for low, high in front)
        order = np.argsort(sorted_looks, kind="stable")
        sorted_looks = sorted_looks[order]
        for start in range(0, len(order), _NUM_AT_ONCE):
            block = np.arange(start, min(start + _NUM_AT_ONCE, len(order)))
            for first, second, bits in _neighbours(sorted_looks, block, shared):
                near = bits <= most
                yield order[first[near]], order[second[near]], bits[near]


def _neighbours(
    sorted_looks: UInt64[np.ndarray, " n"], first: _Places, shared: int
) -> Iterator[tuple[_Places, _Places, _Places]]:
    """Pairs of each of `first` and the next ones, as long as they are equal from bit `shared` on, and the bits in which
    they differ."""
    for distance in range(1, _NUM_NEIGHBOURS + 1):
        first = first[first < len(sorted_looks) - distance]
        differ = sorted_looks[first] ^ sorted_looks[first + distance]
        first, differ = (each[differ >> np.uint64(shared) == 0] for each in (first, differ))
        if not len(first):
            return
        yield first, first + distance, np.bitwise_count(differ).astype(np.int64)


def _rearranged(looks: UInt64[np.ndarray, " n"], parts: Iterable[tuple[int, int]]) -> UInt64[np.ndarray, " n"]:
    """The same bits in another order, from the highest down: parts from a low bit up to a high one, without it."""
    made = np.zeros_like(looks)
    for low, high in parts:
        made = made << np.uint64(high - low) | looks >> np.uint64(low) & np.uint64((1 << high - low) - 1)
    return made
