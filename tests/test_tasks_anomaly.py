"""Anomaly scores beside the closed forms of Gaussians, and the area under the curve beside its exact value."""

import math

import pytest
import torch

from ldm.analytic.mixture import Mixture
from ldm.denoiser.model.diffusion import Schedule
from ldm.tools import probability_flow
from ldm.tools.tasks.anomaly import reconstruction_error, roc_area

DATA = Mixture.gaussian([0.5], [[0.25]])


@pytest.mark.parametrize("name", ["flow", "linear"])
def test_the_error_of_gaussian_data_is_the_closed_form(name: str):
    """z0_hat - z0 is a multiple of z0 - mean plus a multiple of the noise."""
    schedule, times = Schedule(name), [0.3, 0.7]
    z0 = torch.linspace(-2, 3, 11, dtype=torch.float64)
    rows = z0.repeat(2000).reshape(-1, 1, 1, 1)
    noises = torch.randn(2, *rows.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = reconstruction_error(DATA.denoiser(schedule), schedule, rows, times, noises).reshape(2000, 11).mean(0)
    expected = torch.zeros(11, dtype=torch.float64)
    for time in times:
        t = torch.tensor([time], dtype=torch.float64)
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        expected += ((1 - gain * alpha) * (z0 - 0.5)).square() / 2 + (gain * sigma) ** 2 / 2
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)


def exact_area(shift: float) -> float:
    """Usual: N(0, 1); unusual: N(shift, 1), scored by the value itself."""
    return 0.5 * math.erfc(-shift / 2)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_the_area_is_the_exact_one_within_its_interval_and_the_interval_is_as_wide_as_it_should_be(shift: float):
    generator = torch.Generator().manual_seed(0)
    covered, values = 0, list[float]()
    for _ in range(300):
        usual, unusual = torch.randn(150, generator=generator), shift + torch.randn(100, generator=generator)
        value, low, high = roc_area(usual, unusual)
        covered += low <= exact_area(shift) <= high
        values.append(value)
    assert 0.91 * 300 <= covered <= 0.99 * 300
    assert sum(values) / 300 == pytest.approx(exact_area(shift), abs=0.01)


def test_equal_scores_count_half_and_a_clean_cut_is_one():
    assert roc_area(torch.zeros(5), torch.zeros(7))[0] == 0.5
    assert roc_area(torch.arange(5.0), 10 + torch.arange(5.0)) == (1, 1, 1)


USUAL = Mixture.of([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [[[0.1, 0.0], [0.0, 0.1]]] * 2)
UNUSUAL = Mixture.gaussian([0.0, 0.6], [[0.1, 0.0], [0.0, 0.1]])


def test_the_likelihood_tells_apart_as_well_as_the_exact_density_does_and_the_error_almost_so():
    generator = torch.Generator().manual_seed(0)
    schedule, z0 = Schedule("flow"), torch.cat([data.samples(150, generator) for data in (USUAL, UNUSUAL)])
    denoise = USUAL.denoiser(schedule)

    def area(scores: torch.Tensor) -> float:
        return roc_area(scores[:150], scores[150:])[0]

    exact = roc_area(*(-USUAL.log_density(z0)).split(150))
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:, None, :].expand(-1, 300, -1)
    bits = probability_flow.bits_per_dimension(denoise, schedule, z0, signs, 1e-4)
    assert exact.low > 0.85
    assert area(bits) == pytest.approx(exact.value, abs=0.005)
    noises = torch.randn(8, 300, 2, dtype=torch.float64, generator=generator)
    assert 0.75 < area(reconstruction_error(denoise, schedule, z0, [0.3, 0.4, 0.5], noises)) < exact.high
