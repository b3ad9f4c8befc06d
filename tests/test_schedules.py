"""The numbers without torch are those that tensors get: one formula, two users."""

import pytest
import torch

from ldm.denoiser.model import schedules
from ldm.denoiser.model.diffusion import Schedule

NAMES = ("flow", "cosine", "linear", "scaled_linear", "zero_terminal_snr")
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
    assert gains == pytest.approx({"cosine": 20291.9, "linear": 157.406, "scaled_linear": 14.6146}, rel=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_weights_of_a_number_and_of_a_tensor_are_one_formula(prediction: str):
    alpha, sigma = 0.6, 0.7
    p, q = schedules.z0_weights(alpha, sigma, prediction)
    alphas, sigmas = (torch.full((3,), x, dtype=torch.float64) for x in (alpha, sigma))
    assert [x.tolist() for x in schedules.z0_weights(alphas, sigmas, prediction)] == [[p] * 3, [q] * 3]
