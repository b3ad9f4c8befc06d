"""From data to noise and back, on Gaussian data."""

import pytest
import torch

from ldm.analytic.mixture import Mixture
from ldm.denoiser.model.diffusion import Schedule
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers.ancestral import ddim
from ldm.tools.tasks.inversion import invert

DATA = Mixture.gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]])


def error(name: str, num_steps: int) -> float:
    z0 = DATA.samples(400, torch.Generator().manual_seed(0))[:, :, None, None]
    times, denoise = grids.times(name, num_steps, "uniform", 1.0), DATA.denoiser(Schedule(name))
    again = trajectory.follow(ddim, denoise, Schedule(name), invert(denoise, Schedule(name), z0, times), times)
    return float((again - z0).square().mean().sqrt())


def test_the_error_of_the_way_there_and_back_is_the_one_measured_and_halves_with_twice_the_steps():
    """The numbers of the linear schedule, computed beforehand by another program (NumPy) on other draws."""
    measured = {10: 0.297, 50: 0.069, 100: 0.035, 200: 0.018}
    for num_steps, expected in measured.items():
        assert error("linear", num_steps) == pytest.approx(expected, rel=0.06), num_steps


def test_the_flow_schedule_errs_as_one_over_the_steps_too():
    assert error("flow", 100) / error("flow", 200) == pytest.approx(2, abs=0.2)


def test_the_noise_of_gaussian_data_is_what_the_flow_keeps():
    """The data without their mean and covariance: standard normal, and a known function of each latent."""
    name, z0 = "flow", DATA.samples(400, torch.Generator().manual_seed(1))[:, :, None, None]
    noise = invert(DATA.denoiser(Schedule(name)), Schedule(name), z0, grids.times(name, 400, "uniform", 1.0))
    values, axes = torch.linalg.eigh(DATA.covariances[0])
    whitened = z0.flatten(1) @ (axes / values.sqrt()) @ axes.T
    torch.testing.assert_close(noise.flatten(1), whitened, rtol=0, atol=0.1)
    torch.testing.assert_close(noise.flatten(1).T.cov(), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.2)


def test_the_way_may_end_before_pure_noise():
    schedule, z0 = Schedule("linear"), DATA.samples(100, torch.Generator().manual_seed(2))[:, :, None, None]
    denoise, times = (
        DATA.denoiser(schedule),
        [time for time in grids.times("linear", 200, "uniform", 1.0) if time <= 0.5],
    )
    again = trajectory.follow(ddim, denoise, schedule, invert(denoise, schedule, z0, times), times)
    torch.testing.assert_close(again, z0, rtol=0, atol=0.05)
