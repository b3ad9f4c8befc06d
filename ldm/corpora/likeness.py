"""Which pictures are alike: a perceptual hash for those that look the same, an exact one for those that are the same.

The perceptual hash has 64 bits, from the signs of the low frequencies of the brightness (pHash, Zauner 2010, by the
package `imagehash`). Saving a picture again as a JPEG or in another size leaves it equal, or changes a few bits.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import imagehash
import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

from ldm.core.shards import Split
from ldm.corpora.pairs import ByContent, split_of

_NUM_BITS = 64
_LEAST_CONTRAST = 8
"""Levels of 255 between darkest and brightest pixel. In a flatter picture noise decides about the perceptual hash."""


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
    """For each of `others` the place of the nearest of `looks` and the bits in which they differ, of those with at most
    `most` (0 to 15) of 64; the place is -1 where there is none, and the bits are `most` + 1.

    Two numbers that differ in `most` bits are equal in one of `most` + 1 parts at least, so only those are compared
    that share a part (Norouzi et al. 2012, "Fast Search in Hamming Space with Multi-Index Hashing").
    """
    places, bits = np.full(len(others), -1, np.int64), np.full(len(others), most + 1, np.int64)
    edges = [_NUM_BITS * part // (most + 1) for part in range(most + 2)]
    for low, high in pairwise(edges):
        part, theirs = (_part(each, low, high) for each in (looks, others))
        order = np.argsort(part, kind="stable")
        starts, ends = (np.searchsorted(part[order], theirs, side) for side in ("left", "right"))
        for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            if start == end:
                continue
            same = order[start:end]
            distances = np.bitwise_count(looks[same] ^ others[number])
            best = int(distances.argmin())
            if distances[best] < bits[number]:
                places[number], bits[number] = same[best], distances[best]
    return places, bits


def _part(looks: UInt64[np.ndarray, " n"], low: int, high: int) -> UInt64[np.ndarray, " n"]:
    """The bits from `low` up to `high`, without it."""
    return looks >> np.uint64(low) & np.uint64((1 << high - low) - 1)
