"""Small networks learn with every objective what is known: the exact denoiser of Gaussian data."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.analytic.mixture import Mixture
from ldm.denoiser.model import diffusion
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import DenoisingObjective
from ldm.denoiser.model.params import DiffusionParams
from ldm.denoiser.training.bound import VariationalBound
from ldm.sampling import trajectory
from tests.training_data import UNET

DATA = Mixture.gaussian([0.4, -0.3], [[1.0, 0.7], [0.7, 0.8]])
LOG_NORMAL = {"kind": "log_normal", "mean": -0.5, "std": 1.2}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ve, edm": {"schedule": "ve", "prediction": "edm", "time_sampling": LOG_NORMAL},
    "vp, eps": {"schedule": "vp", "prediction": "eps"},
    "vp, edm": {"schedule": "vp", "prediction": "edm"},
    "flow, edm": {"schedule": "flow", "prediction": "edm"},
    "linear, eps, p2": {
        "schedule": "linear",
        "prediction": "eps",
        "loss_weighting": {"kind": "p2", "k": 1.0, "gamma": 1.0},
    },
    "flow, offset noise": {"schedule": "flow", "prediction": "flow", "offset_noise": 0.7},
}


def objective(changes: dict[str, Any]) -> DiffusionParams:
    return DiffusionParams.model_validate(
        UNET["diffusion"] | {"time_sampling": {"kind": "uniform"}, "caption_dropout": 0.0} | changes
    )


class Small(nn.Module):
    """A linear function of z whose matrix and offset are functions of the time, as the exact denoiser is."""

    def __init__(self) -> None:
        super().__init__()
        self.of_time = nn.Sequential(nn.Linear(9, 48), nn.SiLU(), nn.Linear(48, 6))

    def forward(self, z: Tensor, time: Tensor, condition: Condition) -> Tensor:
        t = time[:, None] / 1000
        waves = [f(math.pi * k * t) for k in (0.5, 1, 2, 4) for f in (torch.sin, torch.cos)]
        factors = self.of_time(torch.cat([t, *waves], 1))
        moved = torch.einsum("bij,bj->bi", factors[:, :4].reshape(-1, 2, 2), z.flatten(1)) + factors[:, 4:]
        return moved.reshape(z.shape)


def trained(params: DiffusionParams, num_steps: int = 500, size: int = 256) -> Small:
    torch.manual_seed(0)
    network, generator = Small(), torch.Generator().manual_seed(1)
    loss = DenoisingObjective(network, params)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, num_steps)
    no_text = {"tokens": torch.zeros(size, 1, 1), "dropped": torch.zeros(size)}
    for _ in range(num_steps):
        z0 = DATA.samples(size, generator).float().reshape(size, 2, 1, 1)
        u = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        noise = torch.randn(z0.shape, generator=generator)
        noise = noise + params.offset_noise * torch.randn(z0.shape, generator=generator)  # a channel has one position
        batch = {"z0": z0, "noise": noise, "t": diffusion.training_times(u, params), **no_text}
        optimizer.zero_grad()
        loss(batch)["loss"].backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_small_network_learns_the_exact_denoiser(name: str):
    params = objective(OBJECTIVES[name])
    schedule = diffusion.Schedule(params.schedule)
    network, generator = trained(params), torch.Generator().manual_seed(2)
    denoise = diffusion.denoiser(network, schedule, params.prediction, Condition(torch.zeros(1, 1, 1)))
    z0 = DATA.samples(500, generator).float().reshape(500, 2, 1, 1)
    more = math.hypot(1, params.offset_noise)  # the deviation of the noise that training has added
    for level in (-2.0, -1.0, 0.0, 1.0):  # log(sigma / alpha)
        t = schedule.time_at(torch.full((500,), -level).double()).float()
        z = diffusion.add_noise(schedule, z0, more * torch.randn(z0.shape, generator=generator), t)
        alpha, sigma = float(schedule.alpha(t[:1].double())), more * float(schedule.sigma(t[:1].double()))
        expected = DATA.denoised(z.double().flatten(1), alpha, sigma).reshape(z.shape).float()
        error, known = (float((z0_hat - expected).square().mean().sqrt()) for z0_hat in (denoise(z, t), z0))
        assert error < 0.25 * known, (level, error, known)


@pytest.mark.parametrize("name", ["flow", "cosine", "linear", "scaled_linear", "zero_terminal_snr", "vp"])
def test_sampling_starts_from_the_noise_itself_where_variance_is_preserved(name: str):
    noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trajectory.start(diffusion.Schedule(name), noise, 1.0), noise)


def test_sampling_with_ve_starts_from_the_deviation_that_its_latents_have():
    noise, schedule = torch.ones(1, 1, 1, 1, dtype=torch.float64), diffusion.Schedule("ve")
    assert trajectory.start(schedule, noise, 1.0).item() == pytest.approx(math.sqrt(80**2 + 1))
    sigma = schedule.sigma(torch.tensor([0.6], dtype=torch.float64)).item()
    assert trajectory.start(schedule, noise, 0.6).item() == pytest.approx(math.sqrt(sigma**2 + 1))


@pytest.mark.parametrize(
    ("schedule", "prediction", "prior"),
    [
        ("flow", "flow", 0.0),
        ("vp", "eps", 0.0),
        ("ve", "edm", 0.0),
        ("linear", "x0", 0.0),
        ("scaled_linear", "v", -math.log2(1 - 0.0682652**2) / 2),
    ],
)
def test_the_bound_of_gaussian_latents_with_the_exact_denoiser_is_their_entropy(
    schedule: str, prediction: str, prior: float
):
    """Of N(0, 1): log(2 pi e) / 2 nats. The mean squared errors of the exact denoiser are known."""
    params, num = objective({"schedule": schedule, "prediction": prediction}), 400
    slices = torch.randperm(num, generator=torch.Generator().manual_seed(0))
    z0 = torch.tensor([1.0, -1.0]).repeat(num)[:num].reshape(num, 1, 1, 1)
    bound = VariationalBound(params, z0, slices)
    t = diffusion.training_times((slices.double() + 0.5) / num, params)
    process = diffusion.Schedule(schedule)
    variance = 1 / (1 + process.log_snr(t).exp())  # of z_0 given z_t
    mse = variance / diffusion.schedules.z0_weights(process.alpha(t), process.sigma(t), params.prediction)[1] ** 2
    terms = bound.terms(float(bound.weights @ mse))
    assert terms["bits_per_dimension"] == pytest.approx(math.log2(2 * math.pi * math.e) / 2, abs=0.01)
    assert terms["bits_prior"] == pytest.approx(prior, abs=2e-4)
    assert terms["bits_per_dimension"] == pytest.approx(sum(terms.values()) - terms["bits_per_dimension"])
