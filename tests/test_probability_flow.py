"""The flow and its likelihood beside the closed forms of Gaussians and mixtures."""

import math

import pytest
import torch

from ldm.analytic.mixture import Mixture
from ldm.denoiser.model.diffusion import Schedule
from ldm.tools import probability_flow

GAUSSIAN = Mixture.gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.5]])
TWO = Mixture.of([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], [[[0.2, 0.0], [0.0, 0.3]], [[0.3, 0.1], [0.1, 0.2]]])
SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)  # their mean is the exact divergence of two axes


@pytest.mark.parametrize("name", ["flow", "cosine", "linear", "zero_terminal_snr"])
@pytest.mark.parametrize("data", [GAUSSIAN, TWO], ids=["gaussian", "mixture"])
def test_the_likelihood_is_the_closed_form(data: Mixture, name: str):
    schedule, z0 = Schedule(name), data.samples(12, torch.Generator().manual_seed(0))
    probes = SIGNS[:, None, :].expand(-1, len(z0), -1)
    found = probability_flow.bits_per_dimension(data.denoiser(schedule), schedule, z0, probes, 1e-5)
    expected = -data.log_density(z0) / math.log(2) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def test_one_probe_is_right_on_average():
    schedule, z0 = Schedule("flow"), GAUSSIAN.samples(1, torch.Generator().manual_seed(0)).expand(400, 2)
    signs = torch.randint(0, 2, (1, 400, 2), generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    found = probability_flow.bits_per_dimension(GAUSSIAN.denoiser(schedule), schedule, z0, signs, 1e-4)
    expected = float(-GAUSSIAN.log_density(z0[:1])) / math.log(2) / 2
    assert float(found.std()) > 0.01
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) / 20 + 0.005)


@pytest.mark.parametrize("name", ["flow", "cosine", "zero_terminal_snr"])
def test_noise_flows_to_the_data_that_the_flow_keeps(name: str):
    """The flow of a Gaussian keeps what is left of the latent without mean and covariance."""
    schedule, noise = (
        Schedule(name),
        torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    values, axes = torch.linalg.eigh(GAUSSIAN.covariances[0])
    expected = GAUSSIAN.mean + noise @ (axes * values.sqrt()) @ axes.T
    found = probability_flow.solve(GAUSSIAN.denoiser(schedule), schedule, noise, 1.0, 0.0, 1e-7)
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-3)


def test_latents_keep_their_dtype():
    schedule, noise = Schedule("flow"), torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    found = probability_flow.solve(TWO.denoiser(schedule), schedule, noise, 1.0, 0.0, 1e-4)
    exact = probability_flow.solve(TWO.denoiser(schedule), schedule, noise.double(), 1.0, 0.0, 1e-4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-3)


def test_there_and_back_is_the_start():
    schedule, z0 = Schedule("linear"), TWO.samples(20, torch.Generator().manual_seed(0))
    denoise = TWO.denoiser(schedule)
    noise = probability_flow.solve(denoise, schedule, z0, 0.0, 1.0, 1e-7)
    again = probability_flow.solve(denoise, schedule, noise, 1.0, probability_flow.NEAR_DATA, 1e-7)
    torch.testing.assert_close(again, z0, rtol=0, atol=1e-4)
    loose = probability_flow.solve(denoise, schedule, noise, 1.0, probability_flow.NEAR_DATA, 1e-2)
    assert float((loose - z0).abs().max()) > 1e-4
