"""Time grids and the numbers of steps, as Python floats (tests/test_samplers.py has what samplers make of them)."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest

from ldm.sampling import grids


def test_uniform_times_are_the_floats_nearest_to_the_fractions():
    for num_steps in (1, 3, 12, 49, 1000):
        times = grids.times("linear", num_steps, "uniform", 1.0)
        assert times == [float(Fraction(i, num_steps)) for i in range(num_steps, -1, -1)]


@pytest.mark.parametrize("name", ["flow", "cosine", "zero_terminal_snr"])
def test_log_snr_times_are_even_between_a_thousandth_and_the_rest(name: str):
    times = grids.times(name, 8, "log_snr", 1.0)
    assert times[0] == 1 and times[-2] == pytest.approx(1e-3) and times[-1] == 0
    levels = [grids.State(name, t).half_log_snr for t in (1 - 1e-3, *times[1:-1])]
    assert [b - a for a, b in pairwise(levels)] == pytest.approx([(levels[-1] - levels[0]) / 7] * 7)
    assert grids.times(name, 1, "log_snr", 1.0) == [1, 0]


def test_a_state_without_signal_is_infinitely_noisy_and_one_without_noise_the_opposite():
    (start, _), (_, end) = grids.steps("zero_terminal_snr", [1.0, 0.6, 0.0])
    assert start.half_log_snr == -math.inf and end.half_log_snr == math.inf


def test_the_other_spacings_are_their_formulas():
    assert grids.times("flow", 4, "quadratic", 1.0) == [1, 9 / 16, 4 / 16, 1 / 16, 0]
    assert grids.times("flow", 4, "leading", 1.0) == [0.751, 0.501, 0.251, 0.001, 0]
    assert grids.times("flow", 3, "trailing", 1.0) == [1, 0.667, 0.333, 0]
    assert grids.times("flow", 1000, "leading", 1.0) == grids.times("flow", 1000, "trailing", 1.0)
    inner = [grids.State("flow", t) for t in grids.times("flow", 8, "karras", 1.0)[1:-1]]
    roots = [999 ** (1 / 7), *((state.sigma / state.alpha) ** (1 / 7) for state in inner)]
    assert [a - b for a, b in pairwise(roots)] == pytest.approx([(999 ** (1 / 7) - 999 ** (-1 / 7)) / 7] * 7)


@pytest.mark.parametrize("name", ["flow", "cosine", "linear"])
def test_a_state_is_found_by_its_log_snr(name: str):
    state = grids.State(name, 0.3)
    for half_log_snr in (-2.0, 0.0, 1.5):
        assert state.at(half_log_snr).half_log_snr == pytest.approx(half_log_snr, abs=1e-9)
    assert state.at(-1e3).time == pytest.approx(1) and state.at(1e3).time == pytest.approx(0)
    assert state.halfway(grids.State(name, 0.5)).time == 0.4
