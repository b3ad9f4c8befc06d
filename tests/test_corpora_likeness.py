"""Which pictures are alike, and that equal ones are always in one split."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm.corpora import likeness
from ldm.corpora.pairs import ByContent

RULE = ByContent(0.3, 0)


def _picture(seed: int, size_px: int = 64) -> np.ndarray:
    """Smooth colours, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC))


def _saved_again(picture: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=90)
    return np.asarray(Image.open(stream))


def test_a_picture_that_is_saved_again_looks_the_same_but_is_another() -> None:
    first = [likeness.of(_picture(seed)) for seed in range(100)]
    again = [likeness.of(_saved_again(_picture(seed))) for seed in range(100)]
    num_equal = sum(a.looks == b.looks for a, b in zip(first, again, strict=True))
    assert num_equal >= 50, "most keep every bit of the perceptual hash"
    assert all(bin(int(a.looks, 16) ^ int(b.looks, 16)).count("1") <= 4 for a, b in zip(first, again, strict=True))
    assert all(a.pixels != b.pixels for a, b in zip(first, again, strict=True))
    assert len({found.looks for found in first}) == 100 == len({found.pixels for found in first})


def test_the_split_has_the_wanted_share_and_depends_on_picture_and_seed_alone() -> None:
    found = [likeness.of(_picture(seed, 32)) for seed in range(1000)]
    splits = [likeness.split(one, RULE) for one in found]
    assert abs(splits.count("val") / 1000 - 0.3) < 4 * (0.3 * 0.7 / 1000) ** 0.5
    assert [likeness.split(likeness.of(_picture(seed, 32).copy()), RULE) for seed in range(50)] == splits[:50]
    assert [likeness.split(one, ByContent(0.3, 1)) for one in found] != splits


@pytest.mark.parametrize("contrast", [0, 3])
def test_flat_pictures_are_told_apart_by_their_pixels(contrast: int) -> None:
    """Their low frequencies are noise, and would put all of them into one split."""
    noise = np.random.default_rng(0).integers(0, contrast + 1, (16, 16, 3), np.uint8)
    found = [likeness.of(noise + np.uint8(10 * level)) for level in range(20)]
    assert len({one.looks for one in found}) == 20
    assert all(one.looks == one.pixels for one in found)
    assert {likeness.split(one, RULE) for one in found} == {"train", "val"}


def test_equal_bytes_in_another_shape_are_another_picture() -> None:
    picture = _picture(0)
    assert likeness.of(picture).pixels != likeness.of(picture.reshape(32, 128, 3)).pixels


@pytest.mark.parametrize("most", [0, 1, 4, 7])
def test_the_nearest_in_hamming_distance_is_found(most: int) -> None:
    """As by comparing all with all; half of the others are some of the first with a few bits changed."""
    draw = np.random.default_rng(most)
    looks = draw.integers(0, 2**64, 3000, np.uint64, endpoint=False)
    looks[:1000] &= np.uint64(0xFFFF00000000FFFF)  # like pictures that share a background
    others = draw.integers(0, 2**64, 200, np.uint64, endpoint=False)
    for number in range(100):
        others[number] = looks[draw.integers(3000)]
        for bit in draw.integers(0, 64, number % 9):
            others[number] ^= np.uint64(1) << np.uint64(bit)
    places, bits = likeness.nearest(looks, others, most)
    distances = np.bitwise_count(looks[None] ^ others[:, None])
    assert (bits == np.minimum(distances.min(1), most + 1)).all() and (bits <= most).sum() > 10
    assert all(
        distances[row, place] == bit for row, (place, bit) in enumerate(zip(places, bits, strict=True)) if place >= 0
    )
    assert ((places == -1) == (bits == most + 1)).all()


def test_the_nearest_before_is_found_among_pictures_that_are_crowded() -> None:
    """Half of all numbers share 16 bits, and some are equal: as by comparing all with all."""
    draw = np.random.default_rng(0)
    looks = draw.integers(0, 2**64, 3000, np.uint64, endpoint=False)
    looks[1000:] = looks[draw.integers(0, 1000, 2000)]
    for bit in draw.integers(0, 64, (6, 2000)):
        looks[1000:] ^= np.where(draw.random(2000) < 0.5, np.uint64(1) << bit.astype(np.uint64), np.uint64(0))
    looks[::2] &= np.uint64(0xFFFFFFFF0000FFFF)
    looks[::2] |= np.uint64(0x00000000ABCD0000)
    places, bits = likeness.nearest_before(looks, 4)
    distances = np.bitwise_count(looks[:, None] ^ looks[None]) + np.triu(np.full((3000, 3000), 99, np.uint8))
    assert (bits == np.minimum(distances.min(1), 5)).all() and 500 < (bits <= 4).sum() < 2900
    assert (places[bits <= 4] == distances.argmin(1)[bits <= 4]).all() and (places[bits == 5] == -1).all()


def test_more_neighbours_than_are_compared_cost_no_picture_that_has_a_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "_NUM_NEIGHBOURS", 2)
    monkeypatch.setattr(likeness, "_NUM_AT_ONCE", 7)
    places, bits = likeness.nearest_before(np.full(50, 3, np.uint64), 4)
    assert places.tolist()[0] == -1 and bits.tolist() == [5] + [0] * 49
    assert all(0 <= place < number for number, place in enumerate(places.tolist()) if number)


def test_of_none_there_is_no_nearest() -> None:
    empty, one = np.zeros(0, np.uint64), np.zeros(1, np.uint64)
    assert [found.tolist() for found in likeness.nearest(empty, one, 2)] == [[-1], [3]]
    assert [found.tolist() for found in likeness.nearest(one, empty, 2)] == [[], []]
