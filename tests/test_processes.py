"""VP, sub-VP and VE: marginals are those of the equations, simulated, and every sampler follows them to the data."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from ldm.analytic.mixture import Mixture
from ldm.analytic.moments import divergence, moments
from ldm.analytic.processes import sub_variance_preserving, variance_exploding, variance_preserving
from ldm.denoiser.model.schedules import alpha_sigma
from ldm.sampling import samplers
from ldm.sampling.samplers.reverse_sde import euler_maruyama, predictor_corrector
from ldm.sampling.samplers.rule import Rule
from tests.analytic import SAMPLERS

PROCESSES = {"vp": variance_preserving(), "sub_vp": sub_variance_preserving(), "ve": variance_exploding()}


def beta(time: float) -> float:
    return 0.1 + 19.9 * time


def all_beta(time: float) -> float:
    return 0.1 * time + 19.9 * time**2 / 2


EQUATIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "vp": (lambda t: -beta(t) / 2, lambda t: math.sqrt(beta(t))),
    "sub_vp": (lambda t: -beta(t) / 2, lambda t: math.sqrt(beta(t) * -math.expm1(-2 * all_beta(t)))),
    "ve": (lambda t: 0.0, lambda t: 0.01 * 1000**t * math.sqrt(2 * math.log(1000))),
}
"""Drift over z, and diffusion: Song et al. 2021, equations 31, 32 and 34."""


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("last", [0.3, 1.0])
def test_marginals_are_those_of_the_simulated_equation(name: str, last: float):
    """20000 paths of one point; 5 standard errors, and 1 % for the steps of the simulation."""
    (drift, diffusion), process, num_steps = EQUATIONS[name], PROCESSES[name], 1000
    generator, z, dt = np.random.default_rng(0), np.full(20_000, 1.5), last / num_steps
    for i in range(num_steps):
        time = (i + 0.5) * dt
        z = (1 + drift(time) * dt) * z + diffusion(time) * math.sqrt(dt) * generator.standard_normal(z.shape)
    state = process.state(last)
    assert z.mean() == pytest.approx(1.5 * state.alpha, abs=5 * z.std() / math.sqrt(len(z)) + 0.01 * state.alpha)
    assert z.std() == pytest.approx(state.sigma, rel=5 / math.sqrt(2 * len(z)) + 0.01)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_marginals_of_a_table_are_those_of_its_simulated_chain(name: str):
    generator, z, before = np.random.default_rng(0), np.full(20_000, 1.5), 1.0
    for k in range(1, 401):
        signal = alpha_sigma(name, k / 1000)[0]
        kept, before = signal / before, signal
        z = kept * z + math.sqrt(1 - kept**2) * generator.standard_normal(z.shape)
    alpha, sigma = alpha_sigma(name, 0.4)
    assert z.mean() == pytest.approx(1.5 * alpha, abs=5 * z.std() / math.sqrt(len(z)))
    assert z.std() == pytest.approx(sigma, rel=5 / math.sqrt(2 * len(z)))


def test_sub_vp_has_less_noise_than_vp_and_both_end_in_unit_noise():
    vp, sub_vp = PROCESSES["vp"].state, PROCESSES["sub_vp"].state
    for time in (0.1, 0.5, 0.9):
        assert sub_vp(time).alpha == vp(time).alpha
        assert sub_vp(time).sigma == pytest.approx(vp(time).sigma ** 2)
    assert sub_vp(1.0).sigma == pytest.approx(1, abs=1e-4) and vp(1.0).sigma == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("process", ["sub_vp", "ve"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_follows_every_process(name: str, process: str):
    """No rule knows that alpha^2 + sigma^2 = 1, or that it is not."""
    params, num_noises = SAMPLERS[name]
    times = PROCESSES[process].even_levels(200, 1.0, 1e-3 if process == "ve" else 0.01)
    steps = PROCESSES[process].steps(times)
    mean, variance = moments(samplers.build(params), steps, 0.28, 0.4**2, num_noises * len(steps))
    assert mean == pytest.approx(0.28, abs=0.02)
    assert math.sqrt(variance) == pytest.approx(0.4, abs=0.02)


def test_samples_of_a_mixture_under_sub_vp_have_its_moments():
    data = Mixture.of([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], [[[0.2, 0.0], [0.0, 0.3]], [[0.3, 0.1], [0.1, 0.2]]])
    process, generator = PROCESSES["sub_vp"], torch.Generator().manual_seed(0)

    def fresh(_: int) -> torch.Tensor:
        return torch.randn(4000, 2, dtype=torch.float64, generator=generator)

    def denoise(z: torch.Tensor, time: float) -> torch.Tensor:
        return data.denoised(z, process.alpha(time), process.sigma(time))

    steps = process.steps(process.even_levels(100, 1.0, 0.01))
    z = predictor_corrector(denoise, fresh(0), steps, fresh, 0.1, 1)
    torch.testing.assert_close(z.mean(0), data.mean, rtol=0, atol=0.08)
    torch.testing.assert_close(z.T.cov(), data.covariance, rtol=0, atol=0.1)


def ve_divergence(rule: Rule, num_noises: int, num_steps: int) -> float:
    """Of samples of N(0.7, 1) from the data, in nats."""
    process = PROCESSES["ve"]
    smallest = process.state(1.0).at(-math.log(0.01)).time
    steps = process.steps(process.even_levels(num_steps, 1.0, smallest))
    return divergence(*moments(rule, steps, 0.7, 1.0, num_noises * len(steps)), 0.7, 1.0)


def test_langevin_steps_help_where_ve_steps_are_long():
    """Song et al. 2021, table 1: at 50 steps, signal-to-noise ratio 0.16, less than half of the divergence is left; at
    500 there is nothing left to gain."""
    corrected = partial(predictor_corrector, snr=0.16, num_corrections=1)
    assert ve_divergence(euler_maruyama, 1, 50) == pytest.approx(0.0052, abs=2e-4)
    assert ve_divergence(corrected, 2, 50) == pytest.approx(0.0022, abs=1e-4)
    assert ve_divergence(corrected, 2, 100) < 0.5 * ve_divergence(euler_maruyama, 1, 100)
    assert ve_divergence(euler_maruyama, 1, 500) - ve_divergence(corrected, 2, 500) < 1e-4
