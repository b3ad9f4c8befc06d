from itertools import pairwise

import numpy as np
import pytest
import torch

from ldm import randomness


def test_key_is_63_bits_and_unambiguous():
    parts = [(0,), (0, ""), (0, "a"), (1, "a"), (0, "a", 12), (0, "a", 1, 2), (0, "a", "12"), (0, "a1", 2)]
    keys = [randomness.key(*p) for p in parts]
    assert len(set(keys)) == len(parts)
    assert all(0 <= k < 2**63 for k in keys)
    assert randomness.key(0, "noise", np.int64(3)) == randomness.key(0, "noise", 3)


def test_key_is_stable_across_versions():
    # A changed value would silently change every run: it must come with a new format version.
    assert randomness.key(0, "noise", 7) == 4194486233065332902


def test_generators_of_other_purposes_are_independent():
    a, b, again = (torch.randn(4096, generator=randomness.generator(0, p, 5)) for p in ("noise", "posterior", "noise"))
    assert torch.equal(a, again)
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 4 / 64


def test_rows_of_noise_are_the_same_however_they_are_divided():
    shape = 2, 3, 5
    whole = randomness.normal(slice(0, 70), shape, 0, "noise", 5)
    assert whole.shape == (70, *shape) and len(whole.unique()) == whole.numel(), "no block repeats another"
    for ends in ([0, 35, 70], [0, 1, 2, 15, 16, 17, 69, 70], [0, 32, 48, 70]):
        parts = [randomness.normal(slice(*each), shape, 0, "noise", 5) for each in pairwise(ends)]
        assert torch.equal(torch.cat(parts), whole)
    others = [randomness.normal(slice(0, 70), shape, *key) for key in ((1, "noise", 5), (0, "x", 5), (0, "noise", 6))]
    assert all((other != whole).all() for other in others)


def test_rows_of_noise_are_standard_normal():
    """Within four standard errors: its moments, and that no row resembles another, of its block or of the next."""
    noise = randomness.normal(slice(0, 4096), (64,), 3, "noise", 0).double()
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5 and abs(noise.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / n) ** 0.5
    for distance in (1, 15, 16, 17):
        assert abs((noise[distance:] * noise[:-distance]).mean()) < 4 / n**0.5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_order_visits_each_sample_once_per_epoch(count):
    samples = randomness.order(np.arange(3 * count), count, seed=0).reshape(3, count)
    assert np.array_equal(np.sort(samples, axis=1), np.tile(np.arange(count), (3, 1)))


def test_order_is_a_pure_function_of_position():
    whole = randomness.order(np.arange(500), 70, seed=3)
    shuffled = np.random.default_rng(0).permutation(500)
    assert np.array_equal(randomness.order(shuffled, 70, seed=3), whole[shuffled])
    assert np.array_equal(randomness.order(np.arange(130, 150), 70, seed=3), whole[130:150])


def test_order_differs_by_epoch_and_seed():
    count = 1000
    first, second = randomness.order(np.arange(2 * count), count, seed=0).reshape(2, count)
    other = randomness.order(np.arange(count), count, seed=1)
    for a, b in ((first, second), (first, other), (first, np.arange(count))):
        assert (a == b).mean() < 0.02
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_order_has_no_structure_between_neighbours():
    samples = randomness.order(np.arange(4096), 4096, seed=5)
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 0.06
    # Over many epochs every sample is equally often first: chi-square of 16 cells (p = 1e-4 at 44).
    firsts = randomness.order(np.arange(3200) * 16, 16, seed=5)
    counts = np.bincount(firsts, minlength=16)
    assert ((counts - 200) ** 2 / 200).sum() < 44


def test_order_serves_a_billion_samples():
    count = 10**9 + 7
    samples = randomness.order(np.arange(5 * count - 2000, 5 * count + 2000), count, seed=0)
    assert samples.min() >= 0 and samples.max() < count
    assert len(np.unique(samples[:2000])) == len(np.unique(samples[2000:])) == 2000
    assert abs(samples.mean() / count - 0.5) < 0.03
