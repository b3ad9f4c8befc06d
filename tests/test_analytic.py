"""The bench itself: its closed forms agree with each other, with autograd and with sampling."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ldm.analytic.mixture import Mixture
from ldm.analytic.moments import divergence, moments, wasserstein
from ldm.denoiser.model.diffusion import Schedule
from ldm.sampling import grids
from ldm.sampling.samplers.ancestral import ddim

DATA = Mixture.of(
    [0.5, 0.3, 0.2],
    [[-1.0, 0.0], [1.5, 1.0], [0.0, -2.0]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]], [[0.4, -0.1], [-0.1, 0.3]]],
)


@pytest.fixture
def points() -> Tensor:
    return 2 * torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_density_is_that_of_torch(points: Tensor):
    theirs = MixtureSameFamily(Categorical(DATA.weights), MultivariateNormal(DATA.means, DATA.covariances))
    torch.testing.assert_close(DATA.log_density(points), theirs.log_prob(points))
    torch.testing.assert_close(DATA.mean, theirs.mean)
    torch.testing.assert_close(DATA.covariance.diagonal(), theirs.variance)


def test_the_score_is_the_gradient_of_the_density(points: Tensor):
    noisy, points = DATA.noisy(0.8, 0.6), points.requires_grad_()
    (gradient,) = torch.autograd.grad(noisy.log_density(points).sum(), points)
    torch.testing.assert_close(noisy.score(points.detach()), gradient)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (0.1, 1.0), (1.0, 0.01)])
def test_the_denoiser_follows_from_the_score(alpha: float, sigma: float, points: Tensor):
    """Tweedie's formula: alpha E[z_0 | z] = z + sigma^2 score (Efron 2011)."""
    expected = (points + sigma**2 * DATA.noisy(alpha, sigma).score(points)) / alpha
    torch.testing.assert_close(DATA.denoised(points, alpha, sigma), expected, rtol=1e-6, atol=1e-6)


def test_the_classifier_is_bayes_rule_and_its_gradient_leads_to_the_class(points: Tensor):
    """score of class k = score + gradient of log p(k | z): what classifier guidance with scale 1 must give."""
    noisy = DATA.noisy(0.7, 0.7)
    likelihoods = torch.stack([DATA.component(k).noisy(0.7, 0.7).log_density(points).exp() for k in range(3)], 1)
    joint = DATA.weights * likelihoods
    torch.testing.assert_close(noisy.classify(points), joint / joint.sum(1, keepdim=True))
    points = points.requires_grad_()
    (towards,) = torch.autograd.grad(noisy.classify(points)[:, 1].log().sum(), points)
    expected = DATA.component(1).noisy(0.7, 0.7).score(points.detach())
    torch.testing.assert_close(noisy.score(points.detach()) + towards, expected)


def test_without_signal_the_denoiser_is_the_mean_and_without_noise_the_point(points: Tensor):
    torch.testing.assert_close(DATA.denoised(points, 0.0, 1.0), DATA.mean.expand_as(points))
    torch.testing.assert_close(DATA.denoised(points, 1.0, 0.0), points)


def test_samples_have_the_moments():
    drawn = DATA.samples(40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), DATA.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.T.cov(), DATA.covariance, rtol=0, atol=0.04)


def test_the_denoiser_keeps_the_contract():
    denoise = DATA.denoiser(Schedule("flow"))
    z = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    z0_hat = denoise(z, torch.full((4,), 0.6))
    assert z0_hat.shape == z.shape and z0_hat.dtype == z.dtype
    expected = DATA.denoised(z.double().flatten(1), 0.4, 0.6)
    torch.testing.assert_close(z0_hat.double().flatten(1), expected, rtol=1e-5, atol=1e-5)


def test_moments_are_those_of_samples():
    """Two steps of DDIM with eta 1, once by the known factors and once by sampling."""
    rule = partial(ddim, eta=1.0)
    steps = list(grids.steps("flow", [1.0, 0.5, 0.0]))
    mean, variance = moments(rule, steps, 0.7, 0.16, 2)
    data, generator = Mixture.gaussian([0.7], [[0.16]]), torch.Generator().manual_seed(0)
    noise, *fresh = torch.randn(3, 200_000, 1, dtype=torch.float64, generator=generator)

    def denoise(z: Tensor, time: float) -> Tensor:
        state = grids.State("flow", time)
        return data.denoised(z, state.alpha, state.sigma)

    drawn = rule(denoise, noise, steps, fresh.__getitem__)
    assert float(drawn.mean()) == pytest.approx(mean, abs=4e-3)
    assert float(drawn.var()) == pytest.approx(variance, abs=2e-3)


def test_distances_of_gaussians():
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.3, 0.5**0.5), torch.distributions.Normal(-0.1, 0.8**0.5)
    )
    assert divergence(0.3, 0.5, -0.1, 0.8) == pytest.approx(float(theirs), rel=1e-6)
    assert wasserstein(1.0, 4.0, 1.0, 4.0) == 0 and wasserstein(3.0, 1.0, 0.0, 25.0) == 5.0
