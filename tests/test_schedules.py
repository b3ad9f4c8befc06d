"""The numbers without torch are those that tensors get: one formula, two users."""

import math
from typing import get_args

import pytest
import torch

from ldm.denoiser.model import schedules
from ldm.denoiser.model.diffusion import Schedule

NAMES = get_args(schedules.ScheduleName)
TIMES = [0.0, 1e-6, 1e-3, 0.0015, 0.25, 0.4999, 0.77123, 0.999, 0.9999999, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_signal_and_noise_are_those_of_tensors(name: str):
    alpha, sigma = zip(*(schedules.alpha_sigma(name, t) for t in TIMES), strict=True)
    t = torch.tensor(TIMES, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(alpha, dtype=torch.float64), Schedule(name).alpha(t), rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.tensor(sigma, dtype=torch.float64), Schedule(name).sigma(t), rtol=0, atol=1e-14)
    assert (alpha[0], sigma[0]) == (1, 0)


def test_only_flow_and_zero_terminal_snr_end_without_signal():
    ends = {name: schedules.alpha_sigma(name, 1.0)[0] for name in NAMES}
    assert {name for name, alpha in ends.items() if alpha == 0} == {"flow", "zero_terminal_snr"}
    gains = {name: -schedules.z0_weights(*schedules.alpha_sigma(name, 1.0), "eps")[1] for name in ends if ends[name]}
    expected = {"cosine": 20291.9, "linear": 157.406, "scaled_linear": 14.6146, "vp": 152.166, "ve": 80.0}
    assert gains == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("prediction", get_args(schedules.Prediction))
def test_weights_of_a_number_and_of_a_tensor_are_one_formula(prediction: str):
    alpha, sigma = 0.6, 0.7
    p, q = schedules.z0_weights(alpha, sigma, prediction)
    alphas, sigmas = (torch.full((3,), x, dtype=torch.float64) for x in (alpha, sigma))
    assert [x.tolist() for x in schedules.z0_weights(alphas, sigmas, prediction)] == [[p] * 3, [q] * 3]


def drift_and_diffusion(name: str, t: float) -> tuple[float, float]:
    """f and g of the SDE dz = f z dt + g dw (Song et al. 2021, equations 30 and 32)."""
    if name == "vp":
        beta = 0.1 + (20 - 0.1) * t
        return -beta / 2, math.sqrt(beta)
    ratio = 80 / 0.002
    return 0.0, 0.002 * ratio**t * math.sqrt(2 * math.log(ratio))


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_the_marginals_are_those_of_the_sde_followed_at_random(name: str):
    num_steps, z0 = 500, 1.5
    z = torch.full((4000,), z0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, num_steps + 1):
        f, g = drift_and_diffusion(name, (step - 0.5) / num_steps)
        noise = torch.randn(z.shape, dtype=z.dtype, generator=generator)
        z = z + f * z / num_steps + g / math.sqrt(num_steps) * noise
        if step in (50, 150, 300, 500):
            alpha, sigma = schedules.alpha_sigma(name, step / num_steps)
            assert float(z.mean()) == pytest.approx(alpha * z0, abs=4 * sigma / math.sqrt(len(z)) + 2e-3)
            assert float(z.std()) == pytest.approx(sigma, rel=0.05)


def test_ve_grows_by_equal_factors_from_sigma_min_on_and_begins_with_data():
    (_, low), (_, middle), (_, high) = (schedules.alpha_sigma("ve", t) for t in (0.5, 0.75, 1.0))
    assert high == pytest.approx(80) and middle / low == pytest.approx(high / middle, rel=1e-4)
    assert schedules.alpha_sigma("ve", 0.0) == (1.0, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_time_is_found_by_its_log_snr_and_beyond_the_range_the_nearer_end(name: str):
    schedule, t = Schedule(name), torch.tensor([1e-4, 0.2, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(schedule.time_at(schedule.log_snr(t) / 2), t, rtol=1e-9, atol=0)
    far = torch.tensor([math.inf, 1e3, -1e3], dtype=torch.float64)
    torch.testing.assert_close(schedule.time_at(far), torch.tensor([0.0, 0.0, 1.0]).double(), rtol=0, atol=1e-12)
