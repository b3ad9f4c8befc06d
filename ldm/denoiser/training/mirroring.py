"""Which images are seen mirrored: half of them in every epoch, but none whose caption tells left from right."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from ldm import randomness
from ldm.core.buckets import Numbers
from ldm.denoiser.training.params import MirroringParams


class Mirroring:
    """A pure function of (seed, sample, epoch) and of the caption that the sample has in that epoch."""

    def __init__(self, params: MirroringParams, seed: int) -> None:
        self._seed = seed
        self._sided = re.compile("|".join(map(_pattern, params.unless)) or "(?!)", re.IGNORECASE)

    def __call__(self, samples: Numbers, epochs: Numbers, captions: Sequence[str]) -> Bool[np.ndarray, " b"]:
        """Whether each sample is mirrored; captions: that of each."""
        rows = zip(samples.tolist(), epochs.tolist(), captions, strict=True)
        return np.array(
            [randomness.key(self._seed, "mirror", i, e) % 2 == 1 and not self.is_sided(text) for i, e, text in rows]
        )

    def is_sided(self, caption: str) -> bool:
        """Whether a caption has one of the words that a mirrored image would belie."""
        return self._sided.search(caption) is not None


def _pattern(word: str) -> str:
    """A word as a whole, if its script has capitals; other scripts write words without blanks or with prefixes."""
    has_capitals = word.lower() != word.upper()
    return rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])" if has_capitals else re.escape(word)
