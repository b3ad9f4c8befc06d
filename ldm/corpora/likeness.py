"""Which pictures are alike: a perceptual hash for those that look the same, an exact one for those that are the same.

The perceptual hash has 64 bits, from the signs of the low frequencies of the brightness (pHash, Zauner 2010, by the
package `imagehash`). Saving a picture again as a JPEG or in another size leaves it equal, or changes a few bits.
"""

import hashlib
from dataclasses import dataclass

import imagehash
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm.core.shards import Split
from ldm.corpora.pairs import ByContent, split_of

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
