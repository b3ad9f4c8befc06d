"""A network that sees its own last estimate, behind the contract of every denoiser."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ldm.analytic.mixture import Mixture
from ldm.analytic.self_conditioning import for_one_trajectory, in_two_passes, losses
from ldm.analytic.small import SmallNetwork, fit
from ldm.denoiser.model.diffusion import Schedule, z0_from_prediction
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers.ancestral import ddim
from ldm.sampling.samplers.edm import heun

COSINE = Schedule("cosine")
RING = Mixture.of(
    [1 / 8] * 8,
    [[1.4 * math.cos(k * math.pi / 4), 1.4 * math.sin(k * math.pi / 4)] for k in range(8)],
    [[[0.01, 0.0], [0.0, 0.01]]] * 8,
)


class Network(torch.nn.Module):
    """Predicts v, from a latent and an estimate of the clean latent."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.network = SmallNetwork(4, 2, 64, seed)

    def forward(self, z: Tensor, t: Tensor, before: Tensor) -> Tensor:
        return z0_from_prediction(COSINE, "v", z, self.network(t, z, before), t)


def batch(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """z_0, noise and times."""
    z0 = RING.samples(num, generator)
    noise = torch.randn(z0.shape, dtype=z0.dtype, generator=generator)
    return z0, noise, torch.rand(num, dtype=z0.dtype, generator=generator) * 0.98 + 0.01


@pytest.fixture(scope="module")
def trained() -> Network:
    """Half of the rows see an estimate, as in the paper."""
    network = Network()

    def loss(generator: torch.Generator) -> Tensor:
        rows = batch(256, generator)
        return losses(network, COSINE, *rows, torch.rand(256, generator=generator) < 0.5).mean()

    fit(network.parameters(), loss, 1000, 3e-3, seed=0)
    return network.requires_grad_(False)


def test_rows_without_an_estimate_see_zeros_and_the_others_the_first_pass():
    network, (z0, noise, t) = Network(), batch(6, torch.Generator().manual_seed(0))
    seen = torch.tensor([True, False] * 3)
    z = COSINE.alpha(t)[:, None] * z0 + COSINE.sigma(t)[:, None] * noise
    once = network(z, t, torch.zeros_like(z))
    expected = torch.where(seen[:, None], network(z, t, once), once)
    found = losses(network, COSINE, z0, noise, t, seen)
    torch.testing.assert_close(found, ((expected - z0) / COSINE.sigma(t)[:, None]).square().mean(1))
    assert not torch.allclose(expected[0], once[0])


def test_the_first_pass_is_not_trained_through():
    """The gradient is that with the first estimate as a constant."""
    network, (z0, noise, t) = Network(), batch(6, torch.Generator().manual_seed(0))
    z = COSINE.alpha(t)[:, None] * z0 + COSINE.sigma(t)[:, None] * noise
    constant = network(z, t, torch.zeros_like(z)).detach()
    second = ((network(z, t, constant) - z0) / COSINE.sigma(t)[:, None]).square().mean()
    expected = torch.autograd.grad(second, list(network.parameters()))
    both = losses(network, COSINE, z0, noise, t, torch.ones(6, dtype=torch.bool)).mean()
    torch.testing.assert_close(torch.autograd.grad(both, list(network.parameters())), expected)


def test_a_second_pass_has_a_lower_loss(trained: Network):
    """On the same rows, noise and times."""
    rows = batch(20_000, torch.Generator().manual_seed(1))
    once, twice = (losses(trained, COSINE, *rows, torch.full((20_000,), seen)) for seen in (False, True))
    gain = once - twice
    assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(len(gain))


@pytest.mark.parametrize("rule", [ddim, heun])
def test_a_trajectory_is_a_function_of_its_noise(rule, trained: Network):
    """Twice the same bits, whatever was drawn before; the second step sees what the first one answered."""
    noise = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = grids.times("cosine", 8, "uniform", 1.0)
    follow = partial(trajectory.follow, rule)
    first = follow(for_one_trajectory(trained), COSINE, noise, times)
    again = for_one_trajectory(trained)
    follow(again, COSINE, noise + 1, times)
    assert torch.equal(follow(again, COSINE, noise, times), first)
    forgetful = follow(lambda z, t: trained(z, t, torch.zeros_like(z)), COSINE, noise, times)
    assert not torch.allclose(forgetful, first)


def test_each_call_sees_the_answer_before_it():
    seen: list[float] = []

    def estimate(z: Tensor, t: Tensor, before: Tensor) -> Tensor:
        seen.append(float(before[0, 0]))
        return torch.full_like(z, float(len(seen)))

    denoise = for_one_trajectory(estimate)
    trajectory.follow(ddim, denoise, COSINE, torch.zeros(2, 2), [1.0, 0.6, 0.3, 0.0])
    trajectory.follow(ddim, denoise, COSINE, torch.zeros(3, 2), [1.0, 0.5, 0.0])
    assert seen == [0, 1, 2, 0, 4]
    seen.clear()
    assert float(in_two_passes(estimate)(torch.zeros(1, 2), torch.ones(1))[0, 0]) == 2 and seen == [0, 1]


def test_samples_lie_on_the_ring(trained: Network):
    noise = torch.randn(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = trajectory.follow(ddim, for_one_trajectory(trained), COSINE, noise, grids.times("cosine", 50, "uniform", 1.0))
    torch.testing.assert_close(z.mean(0), RING.mean, rtol=0, atol=0.15)
    assert float((z.norm(dim=1) - 1.4).abs().mean()) < 0.2
