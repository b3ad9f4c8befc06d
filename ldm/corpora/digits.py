"""Handwritten digits, real data without a download: the test set of Alpaydin and Kaynak's "Optical recognition of
handwritten digits" (UCI, 1998; CC BY 4.0), which the package scikit-learn contains."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm.corpora.pairs import Pair, class_claim, split_of
from ldm.corpora.params import DigitsParams

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MOST_INK = 16


def pairs(params: DigitsParams, size_px: int) -> Iterator[Pair]:
    """Every digit, white on black, in the order of the package."""
    from sklearn.datasets import load_digits

    all_ink, digits = load_digits(return_X_y=True)
    for number, (ink, digit) in enumerate(zip(np.asarray(all_ink), np.asarray(digits), strict=True)):
        key = f"{number:04d}"
        captions = [f"a handwritten {NAMES[digit]}", f"the digit {digit}"]
        yield Pair(
            key=key,
            image=render(ink.reshape(8, 8), size_px),
            captions=captions,
            claims=[class_claim(NAMES[digit])] * len(captions),
            scene=None,
            split=split_of(key, params.val_fraction, params.seed, params.held_out_fraction),
            source={"corpus": "digits", "number": number, "attribution": "E. Alpaydin and C. Kaynak, CC BY 4.0"},
        )


def render(ink: np.ndarray, size_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """A grey image from ink 0..16 at 8 x 8 places, enlarged by bicubic interpolation."""
    grey = Image.fromarray(np.round(ink * (255 / _MOST_INK)).astype(np.uint8))
    return np.asarray(grey.resize((size_px, size_px), Image.Resampling.BICUBIC).convert("RGB"))
