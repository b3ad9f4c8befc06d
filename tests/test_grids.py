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


def test_a_state_without_signal_is_infinitely_noisy_and_a_step_from_it_extrapolates_nothing():
    (start, middle), (_, later), (_, end) = grids.steps("zero_terminal_snr", [1.0, 0.6, 0.3, 0.0])
    assert start.half_log_snr == -math.inf and end.half_log_snr == math.inf
    first, second = middle.half_log_snr - start.half_log_snr, later.half_log_snr - middle.half_log_snr
    assert grids.extrapolation(math.inf, first) == grids.extrapolation(first, second) == 0
    assert grids.extrapolation(second, math.inf) == 0 and grids.extrapolation(2.0, 3.0) == 0.75


def test_a_full_ancestral_step_from_pure_noise_is_all_fresh():
    ((start, middle),) = grids.steps("flow", [1.0, 0.6])
    assert grids.fresh_noise(start, middle, 1.0) == middle.sigma == 0.6
    assert grids.fresh_noise(start, middle, 0.5) == 0.3
