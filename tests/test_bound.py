"""Terms of the bound beside torch's distributions, and the bound of pixels beside the entropy of their distribution."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ldm.analytic.bound import bits, discretised_nll, gaussian_kl, gaussian_nll, prior
from ldm.analytic.learned_variance import Chain
from ldm.analytic.mixture import Mixture
from ldm.denoiser.model.diffusion import Schedule
from ldm.sampling import grids


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_terms_are_those_of_torch():
    mean, log_variance, of_mean, of_log_variance = numbers(4, 5, 3)
    first, second = Normal(mean, (log_variance / 2).exp()), Normal(of_mean, (of_log_variance / 2).exp())
    found = gaussian_kl(mean, log_variance, of_mean, of_log_variance)
    torch.testing.assert_close(found, kl_divergence(first, second))
    torch.testing.assert_close(gaussian_nll(of_mean, mean, log_variance), -first.log_prob(of_mean))
    torch.testing.assert_close(bits(found), found.mean(1) / math.log(2))
    expected = bits(kl_divergence(Normal(0.3 * mean, torch.tensor(0.9)), Normal(0.0, 1.0)))
    torch.testing.assert_close(prior(mean, 0.3, 0.9), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("mean", "deviation"), [(0.3, 0.2), (-0.9, 0.003), (0.0, 5.0)])
def test_cells_of_pixels_have_probability_one_together(mean: float, deviation: float):
    pixels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    log_variance = torch.full_like(pixels, 2 * math.log(deviation))
    nll = discretised_nll(pixels, torch.full_like(pixels, mean), log_variance)
    assert float((-nll).exp().sum()) == pytest.approx(1, abs=1e-9)
    inner, normal = 150, Normal(mean, deviation)
    expected = normal.cdf(pixels[inner] + 1 / 255) - normal.cdf(pixels[inner] - 1 / 255)
    assert float((-nll[inner]).exp()) == pytest.approx(float(expected), abs=1e-9)


def test_the_bound_of_pixels_is_their_entropy_and_little_more():
    """Two pixels of four grey values each, independent: a mixture of points, whose denoiser is exact."""
    odds = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    values = torch.linspace(-1, 1, 4, dtype=torch.float64)
    data = Mixture(odds, values[:, None], torch.zeros(4, 1, 1, dtype=torch.float64))
    entropy, generator = float(-(odds * odds.log2()).sum()), torch.Generator().manual_seed(0)
    z0 = values[torch.multinomial(odds, 2000, replacement=True, generator=generator)].reshape(1000, 2)

    def estimate(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return data.denoiser(Schedule("cosine"))(z.reshape(-1, 1), t.repeat_interleave(2)).reshape(z.shape), 0 * z

    totals: list[float] = []
    for num_steps in (20, 200):
        chain = Chain(list(grids.steps("cosine", grids.times("cosine", num_steps, "uniform", 1.0))))
        parts = chain.bound(estimate, z0, generator, partial(discretised_nll, width=2 / 3)).means()
        assert parts["total"] == pytest.approx(parts["prior"] + parts["reconstruction"] + parts["diffusion"])
        totals.append(parts["total"])
    assert entropy - 0.05 < totals[1] < totals[0] - 0.5 and totals[1] < entropy + 0.1
