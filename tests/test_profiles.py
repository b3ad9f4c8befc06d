"""Averages by power functions, in closed form."""

import numpy as np
import pytest

from ldm.training.profiles import decay_at, exponent_of, mixture


def _shares(length: float, steps: int) -> np.ndarray:
    """What each step counts in the average, update by update."""
    shares = np.zeros(steps)
    for step in range(steps):
        decay = decay_at(step, length)
        shares *= decay
        shares[step] += 1 - decay
    return shares


@pytest.mark.parametrize(("length", "exponent"), [(0.05, 16.97), (0.10, 6.94), (0.25, 0.72)])
def test_the_length_is_the_deviation_of_the_profile(length: float, exponent: float) -> None:
    assert exponent_of(length) == pytest.approx(exponent, abs=6e-3)  # the first two are those of Karras et al. 2024
    places, shares = (np.arange(4000) + 0.5) / 4000, _shares(length, 4000)
    mean = shares @ places
    assert np.sqrt(shares @ (places - mean) ** 2) == pytest.approx(length, rel=1e-3)


def test_updates_integrate_the_profile_over_each_step() -> None:
    ends = np.arange(51) / 50
    assert _shares(0.1, 50) == pytest.approx(np.diff(ends ** (exponent_of(0.1) + 1)), abs=1e-12)
    assert _shares(0.1, 50).sum() == pytest.approx(1)


BASES = [(step, length) for step in range(40, 401, 40) for length in (0.05, 0.1)]


@pytest.mark.parametrize(("step", "length"), [(400, 0.05), (400, 0.1), (80, 0.05)])
def test_an_average_that_is_there_is_found(step: int, length: float) -> None:
    found = mixture(BASES, step, length)
    assert found.shares == pytest.approx([float(base == (step, length)) for base in BASES], abs=1e-6)
    assert found.misfit < 1e-5


@pytest.mark.parametrize(("step", "length"), [(400, 0.03), (400, 0.075), (400, 0.2), (240, 0.07)])
def test_others_are_the_nearest_mixture_with_a_sum_of_one(step: int, length: float) -> None:
    found = mixture(BASES, step, length)
    mixed = sum(
        share * np.pad(_shares(each, after), (0, 400 - after))
        for share, (after, each) in zip(found.shares, BASES, strict=True)
    )
    wanted = np.pad(_shares(length, step), (0, 400 - step))
    assert sum(found.shares) == pytest.approx(1)
    assert np.linalg.norm(mixed - wanted) / np.linalg.norm(wanted) == pytest.approx(found.misfit, rel=0.1, abs=1e-3)
    assert 0 < found.misfit < 0.1


def test_far_lengths_and_steps_between_are_misfits() -> None:
    assert mixture(BASES, 400, 0.01).misfit > 0.3 and mixture(BASES, 60, 0.05).misfit > 0.1
