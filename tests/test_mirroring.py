"""Mirrored images: half of them in every epoch, and none whose caption tells left from right."""

import numpy as np
import pytest

from ldm.denoiser.training.mirroring import Mirroring
from ldm.denoiser.training.params import MirroringParams

MIRRORING = Mirroring(MirroringParams(unless=["left", "right", "linke Hand", "слева", "左", "يسار"]), seed=0)


@pytest.mark.parametrize(
    ("caption", "is_sided"),
    [
        ("a cat to the left of a dog", True),
        ("A LEFT-handed cup", True),
        ("right.", True),
        ("(Right)", True),
        ("left2right", True),
        ("a bright leftover", False),
        ("die linke Hand", True),
        ("linkerhand", False),
        ("кот слева от собаки", True),
        ("狗在猫的左边", True),
        ("على اليسار", True),
        ("upright", False),
        ("", False),
    ],
)
def test_a_caption_is_sided_by_whole_words(caption: str, is_sided: bool) -> None:
    assert MIRRORING.is_sided(caption) == is_sided


def test_half_of_the_others_are_mirrored_and_every_epoch_anew() -> None:
    samples = np.arange(2000)
    captions = ["on the left" if i % 4 == 0 else "a cat" for i in range(2000)]
    first, second = (MIRRORING(samples, np.full(2000, epoch), captions) for epoch in (0, 1))
    assert not first[::4].any() and not second[::4].any()
    others = samples % 4 != 0
    # Three standard errors of a share of one half among 1500.
    assert abs(first[others].mean() - 0.5) < 3 * 0.5 / 1500**0.5
    assert abs((first[others] == second[others]).mean() - 0.5) < 3 * 0.5 / 1500**0.5
    part = MIRRORING(samples[100:110], np.zeros(10, np.int64), captions[100:110])
    assert (part == first[100:110]).all(), "a pure function of sample and epoch"


def test_without_words_no_caption_is_sided() -> None:
    assert not Mirroring(MirroringParams(unless=[]), 0).is_sided("left or right")
