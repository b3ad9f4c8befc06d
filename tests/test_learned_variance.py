"""Improved DDPM: what is learned lies between the two fixed variances, is taught by the bound alone, and is the one
that a few steps need."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ldm.analytic.learned_variance import (
    Chain,
    ImportanceSteps,
    LearnedVariance,
    hybrid_losses,
    simple_losses,
)
from ldm.analytic.mixture import Mixture
from ldm.analytic.moments import moments
from ldm.analytic.small import SmallNetwork, fit
from ldm.denoiser.model.diffusion import Schedule, z0_from_prediction
from ldm.denoiser.model.schedules import alpha_sigma
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers.ancestral import ddpm
from ldm.sampling.samplers.rule import Step

CORRELATED = Mixture.gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]])
AXES = Mixture.gaussian([0.0, 0.0], [[1.9, 0.0], [0.0, 0.1]])
"""CORRELATED along its principal axes, whose entries are independent."""
TWO = Mixture.of([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], [[[0.2, 0.0], [0.0, 0.3]], [[0.3, 0.1], [0.1, 0.2]]])


def steps_of(name: str, num_steps: int) -> list[Step]:
    return list(grids.steps(name, grids.times(name, num_steps, "uniform", 1.0)))


def betas_of_ddpm() -> tuple[np.ndarray, np.ndarray]:
    """Variances of the 1000 forward steps of Ho et al. 2020, and alpha-bar after them."""
    betas = np.linspace(1e-4, 0.02, 1000)
    return betas, np.cumprod(1 - betas)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cosine_is_the_formula():
    signal = [math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(1001)]
    found = [alpha_sigma("cosine", k / 1000)[0] ** 2 for k in range(1001)]
    assert found[:-1] == pytest.approx([s / signal[0] for s in signal[:-1]], rel=1e-9)
    assert 1 - found[-1] / found[-2] == pytest.approx(0.999)  # the cap


def test_v_of_zero_and_one_are_the_two_bounds():
    betas, signal = betas_of_ddpm()
    before = np.append(1.0, signal[:-1])
    small = (1 - before) / (1 - signal) * betas
    small[0] = small[1]
    chain, step = Chain(steps_of("linear", 1000)), torch.arange(1000)
    zeros = torch.zeros(1000, 2, dtype=torch.float64)
    for v, expected in ((zeros, small), (zeros + 1, betas), (zeros + 0.5, np.sqrt(small * betas))):
        found = chain.log_variance(v, step).exp()
        np.testing.assert_allclose(found[:, 0], expected[::-1], rtol=1e-8)


@pytest.mark.parametrize("num_steps", [10, 50, 250])
def test_fewer_steps_keep_the_signal_at_the_steps_that_stay(num_steps: int):
    """Section 4: the betas of the shorter chain follow from alpha-bar, so their product is what it was."""
    _, signal = betas_of_ddpm()
    steps = list(grids.steps("linear", grids.times("linear", num_steps, "trailing", 1.0)))
    product = 1.0
    for t, s in reversed(steps):
        beta = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
        product *= 1 - beta
        assert product == pytest.approx(signal[round(t.time * 1000) - 1], rel=0, abs=1e-12)
    assert round(steps[0][0].time * 1000) == 1000


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_a_learned_constant_is_the_fixed_variance(v: float):
    steps, start = steps_of("linear", 12), noise(5, 2)

    def estimate(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return CORRELATED.denoiser(Schedule("linear"))(z, t), torch.full_like(z, v)

    def fresh(number: int) -> Tensor:
        return noise(5, 2, seed=number + 1)

    learned = LearnedVariance(estimate)
    times = [steps[0][0].time, *(s.time for _, s in steps)]
    args = (learned, Schedule("linear"), start, times, fresh)
    fixed = trajectory.follow(partial(ddpm, variance=v), *args)
    torch.testing.assert_close(trajectory.follow(partial(ddpm, variance=learned.noise), *args), fixed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_step_asks_the_network_once(dtype: torch.dtype):
    asked: list[float] = []

    def estimate(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(float(t[0]))
        return 0.5 * z, 0.0 * z

    learned, times = LearnedVariance(estimate), [1.0, 0.7, 0.4, 0.0]
    rule = partial(ddpm, variance=learned.noise)
    start = noise(3, 2).to(dtype)
    trajectory.follow(rule, learned, Schedule("linear"), start, times, lambda n: noise(3, 2, seed=n))
    assert asked == pytest.approx(times[:-1])


class TwoHeads(torch.nn.Module):
    """z0_hat and v by networks of their own, so that the gradients of one can be told from the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.v = (SmallNetwork(2, 2, 8, seed) for seed in (0, 1))

    def forward(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(t, z), self.v(t, z)


def test_the_bound_teaches_the_variance_alone():
    network, chain = TwoHeads(), Chain(steps_of("linear", 20))
    step = torch.arange(20).repeat(2)
    z0, eps = TWO.samples(40, torch.Generator().manual_seed(0)), noise(40, 2)

    def gradients(part: int) -> dict[str, Tensor]:
        network.zero_grad()
        losses = hybrid_losses(network, chain, z0, eps, step)
        (losses[part] if part < 2 else losses[0] + losses[1]).mean().backward()
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}

    simple, bound, both = gradients(0), gradients(1), gradients(2)
    for name in simple:
        own, other = (simple, bound) if name.startswith("mean.") else (bound, simple)
        assert float(other[name].abs().max()) == 0 and float(own[name].abs().max()) > 0, name
        assert torch.equal(both[name], own[name])


def test_terms_are_the_divergences_of_the_posterior_from_the_step():
    """Beside the formulas of Ho et al. 2020 (6, 7) with their betas, and torch's divergence."""
    betas, signal = betas_of_ddpm()
    chain, k = Chain(steps_of("linear", 1000)), 400  # the step from z_400 to z_399
    z0, z, z0_hat, v = noise(4, 6, 2)
    beta, now, before = betas[k - 1], signal[k - 1], signal[k - 2]
    small = (1 - before) / (1 - now) * beta

    def mean(clean: Tensor) -> Tensor:
        return math.sqrt(before) * beta / (1 - now) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * z

    reverse = Normal(mean(z0_hat), torch.exp((v * math.log(beta) + (1 - v) * math.log(small)) / 2))
    expected = kl_divergence(Normal(mean(z0), math.sqrt(small)), reverse).mean(1) / math.log(2)
    found = chain.terms(z0, z, z0_hat, v, torch.full((6,), 1000 - k))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    error = math.sqrt(now / (1 - now)) * (z0_hat - z0)  # of the noise
    simple = simple_losses(chain, z0_hat, z0, torch.full((6,), 1000 - k))
    torch.testing.assert_close(simple, error.square().mean(1), rtol=1e-6, atol=1e-9)


def best_v(chain: Chain, data: Mixture = AXES) -> Tensor:
    """v of every step and entry (steps d) which minimises the bound of Gaussian data with an exact denoiser.

    The best variance is that of the posterior for one clean latent, and of_z0^2 times what z_t leaves open of the clean
    latent (Bao et al. 2022, theorem 1), in every entry.
    """
    signal, noise = (chain.alpha**2)[:, None], (chain.sigma**2)[:, None]
    values, axes = torch.linalg.eigh(data.covariances[0])
    open_ = (axes**2 @ (values * noise / (signal * values + noise)).T).T
    known = torch.cat([chain.log_small[:-1].exp(), torch.zeros(1)])  # to the last step z_0 is no secret
    variances = known[:, None] + (chain.of_z0**2)[:, None] * open_
    return (variances.log() - chain.log_small[:, None]) / (chain.log_large - chain.log_small)[:, None]


def covariance(num_steps: int, v: Tensor) -> tuple[float, float]:
    """Diagonal and other entries of the covariance of samples of CORRELATED, exactly; v is of its principal axes."""
    steps, chain, found = steps_of("linear", num_steps), Chain(steps_of("linear", num_steps)), list[float]()
    deviations = (chain.log_variance(v, torch.arange(num_steps)) / 2).exp().T.tolist()
    for variance, by_step in zip(AXES.covariances[0].diagonal().tolist(), deviations, strict=True):
        at = dict(zip(chain.time.tolist(), by_step, strict=True))
        rule = partial(ddpm, variance=lambda z, step, fresh, at=at: at[step[0].time] * fresh)
        found.append(moments(rule, steps, 0.0, variance, num_steps)[1])
    return sum(found) / 2, (found[0] - found[1]) / 2


def test_the_best_variance_widens_samples_that_the_small_one_leaves_too_narrow():
    """At 50 steps the diagonal of the covariance is 0.87 with the small variance, where 1 is right. One variance for
    both principal axes cannot suit both; a variance per entry can."""
    chain = Chain(steps_of("linear", 50))
    best, shared = best_v(chain), best_v(chain, CORRELATED)
    small, large = torch.zeros_like(best), torch.ones_like(best)
    assert covariance(50, small)[0] == pytest.approx(0.868, abs=0.005)
    assert covariance(50, large)[0] == pytest.approx(0.979, abs=0.005)
    assert covariance(50, best) == pytest.approx((1, 0.9), abs=0.01)
    assert covariance(50, small)[0] + 0.05 < covariance(50, shared)[0] < 0.97
    assert ((shared > 0) & (shared < 1)).all()


def test_the_bound_learns_the_best_variance():
    chain, v = Chain(steps_of("linear", 50)), torch.nn.Parameter(torch.full((50, 2), 0.5, dtype=torch.float64))
    denoise, steps = AXES.denoiser(Schedule("linear")), torch.arange(50).repeat_interleave(40)

    def loss(generator: torch.Generator) -> Tensor:
        z0 = AXES.samples(len(steps), generator)
        z = chain.noisy(z0, torch.randn(z0.shape, dtype=z0.dtype, generator=generator), steps)
        return chain.terms(z0, z, denoise(z, chain.time[steps]), v[steps], steps).mean()

    fit([v], loss, 400, 0.1, seed=0)
    # Where both bounds are nearly one, v says little: compare the logarithms of the variances.
    difference = (v.detach() - best_v(chain)) * (chain.log_large - chain.log_small)[:, None]
    assert float(difference.abs().max()) < 0.1
    assert covariance(50, v.detach()) == pytest.approx((1, 0.9), abs=0.02)


def test_the_bound_is_above_the_likelihood_and_tightest_with_the_best_variance():
    chain, denoise = Chain(steps_of("linear", 50)), AXES.denoiser(Schedule("linear"))
    z0, at = AXES.samples(1500, torch.Generator().manual_seed(0)), {t: k for k, t in enumerate(chain.time.tolist())}
    exact = -AXES.log_density(z0) / math.log(2) / 2

    def gap(v: Tensor) -> Tensor:
        def estimate(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return denoise(z, t), v[[at[time] for time in t.tolist()]]

        bound = chain.bound(estimate, z0, torch.Generator().manual_seed(1))
        return bound.total - exact

    best = best_v(chain)
    small, large, least = (gap(v) for v in (torch.zeros_like(best), torch.ones_like(best), best))
    assert float(least.mean()) == pytest.approx(0, abs=3 * standard_error(least) + 0.01)
    for other in (small, large):
        assert float((other - least).mean()) > 3 * standard_error(other - least)


def standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


class Small(torch.nn.Module):
    """Both outputs from one network, which predicts the v of Salimans and Ho and, of the variance, 2 v - 1."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallNetwork(2, 4, 64, seed=0)

    def forward(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        predicted, v = self.network(t, z).chunk(2, 1)
        return z0_from_prediction(Schedule("linear"), "v", z, predicted, t), (v + 1) / 2


Trained = tuple[Small, Chain, ImportanceSteps]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """Trained in a few seconds by the hybrid loss on a mixture, at 50 steps."""
    network, chain, importance = Small(), Chain(steps_of("linear", 50)), ImportanceSteps(50)

    def loss(generator: torch.Generator) -> Tensor:
        step = torch.randint(50, (256,), generator=generator)
        z0 = TWO.samples(256, generator)
        eps = torch.randn(z0.shape, dtype=z0.dtype, generator=generator)
        simple, bound = hybrid_losses(network, chain, z0, eps, step)
        importance.record(step, bound.detach())
        return (simple + 10 * bound).mean()

    fit(network.parameters(), loss, 600, 3e-3, seed=0)
    return network, chain, importance


def test_a_trained_network_has_a_tighter_bound_than_either_fixed_variance(trained: Trained):
    network, chain, _ = trained
    z0 = TWO.samples(1000, torch.Generator().manual_seed(3))
    exact = -TWO.log_density(z0) / math.log(2) / 2

    @torch.no_grad()
    def rows(v: float | None) -> Tensor:
        def estimate(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            z0_hat, learned = network(z, t)
            return z0_hat, learned if v is None else torch.full_like(z, v)

        bound = chain.bound(estimate, z0, torch.Generator().manual_seed(4))
        return bound.total

    learned = rows(None)
    for v in (0.0, 1.0):
        gain = rows(v) - learned
        assert float(gain.mean()) > 3 * standard_error(gain)
    assert float((learned - exact).mean()) > 3 * standard_error(learned - exact)


def test_a_trained_network_samples_less_narrowly_by_its_variance(trained: Trained):
    network, chain, _ = trained
    times, schedule = [*chain.time.tolist(), 0.0], Schedule("linear")

    @torch.no_grad()
    def spread(learned: bool) -> float:
        denoise, generator = LearnedVariance(network), torch.Generator().manual_seed(6)

        def fresh(_: int) -> Tensor:
            return torch.randn(4000, 2, dtype=torch.float64, generator=generator)

        rule = partial(ddpm, variance=denoise.noise if learned else 0.0)
        return float(trajectory.follow(rule, denoise, schedule, fresh(0), times, fresh).T.cov().trace())

    right = float(TWO.covariance.trace())
    assert spread(False) < 0.87 * right and 0.9 * right < spread(True) < 1.05 * right


def test_importance_sampling_is_unbiased_and_varies_less(trained: Trained):
    network, chain, importance = trained
    generator = torch.Generator().manual_seed(5)

    @torch.no_grad()
    def losses(step: Tensor) -> Tensor:
        z0 = TWO.samples(len(step), generator)
        return hybrid_losses(network, chain, z0, torch.randn(z0.shape, dtype=z0.dtype, generator=generator), step)[1]

    probabilities = importance.probabilities
    assert float(probabilities.max()) > 3 / 50 and float(probabilities.sum()) == pytest.approx(1)
    even = losses(torch.randint(50, (20_000,), generator=generator))
    step, weights = importance.draw(20_000, generator)
    weighted = weights * losses(step)
    error = math.sqrt(float(even.var() + weighted.var()) / 20_000)
    assert float(weighted.mean() - even.mean()) == pytest.approx(0, abs=3 * error)
    assert float(weighted.var()) < 0.7 * float(even.var())


def test_steps_are_drawn_evenly_until_all_have_enough_losses():
    importance = ImportanceSteps(3, num_kept=2)
    importance.record(torch.tensor([0, 1, 2, 0, 1]), torch.tensor([9.0, 1.0, 1.0, 9.0, 1.0]))
    assert importance.probabilities.tolist() == pytest.approx([1 / 3] * 3)
    importance.record(torch.tensor([2, 0, 0]), torch.tensor([1.0, 3.0, 3.0]))  # the nines are the oldest
    assert importance.probabilities.tolist() == pytest.approx([0.6, 0.2, 0.2], abs=1e-3)
