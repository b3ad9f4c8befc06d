"""The corpus of handwritten digits: scikit-learn's images, told by their digit."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ldm.corpora import digits
from ldm.corpora.pairs import Pair
from ldm.corpora.params import DigitsParams

PARAMS = DigitsParams(kind="digits", val_fraction=0.15, held_out_fraction=0.1, seed=0)


@pytest.fixture(scope="module")
def drawn() -> list[Pair]:
    return list(digits.pairs(PARAMS, 8))


def test_every_digit_is_there_once_with_its_own_pixels(drawn: list[Pair]) -> None:
    """At 8 px an image is the package's own, 0..16 spread over 0..255, equal in red, green and blue."""
    ink, target = load_digits(return_X_y=True)
    assert len(drawn) == len({pair.key for pair in drawn}) == 1797
    pixels = np.stack([np.asarray(pair.image) for pair in drawn])
    assert (pixels == pixels[..., :1]).all()
    assert np.array_equal(pixels[..., 0].reshape(1797, 64), np.round(ink * 255 / 16).astype(np.uint8))
    assert [digits.NAMES.index(pair.claims[0]["class"]) for pair in drawn if pair.claims[0]] == list(target)


def test_all_captions_of_an_image_say_its_digit(drawn: list[Pair]) -> None:
    assert drawn[7].captions == ["a handwritten seven", "the digit 7"]
    assert drawn[7].claims == [{"class": "seven"}] * 2
    assert len({caption for pair in drawn for caption in pair.captions}) == 20


def test_splits_have_their_shares_and_every_class(drawn: list[Pair]) -> None:
    counts = Counter(pair.split for pair in drawn)
    for split, share in (("val", 0.15), ("held_out", 0.1)):
        assert abs(counts[split] / 1797 - share) < 4 * (share * (1 - share) / 1797) ** 0.5
        assert len({pair.captions[0] for pair in drawn if pair.split == split}) == 10
    assert counts["unseen"] == 0


def test_a_larger_image_is_the_same_digit(drawn: list[Pair]) -> None:
    large = next(digits.pairs(PARAMS, 32)).image
    assert isinstance(large, np.ndarray) and large.shape == (32, 32, 3)
    means = large[..., 0].reshape(8, 4, 8, 4).mean((1, 3))
    assert np.corrcoef(means.ravel(), np.asarray(drawn[0].image)[..., 0].ravel())[0, 1] > 0.98


def test_splits_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing to train on"):
        DigitsParams(kind="digits", val_fraction=0.5, held_out_fraction=0.5, seed=0)
