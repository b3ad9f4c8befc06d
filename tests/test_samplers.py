import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import grids, guidance, samplers, trajectory

FLOW = Schedule("flow")
MEAN, STD = 0.7, 0.4


def time_grid(schedule: Schedule, num_steps: int, spacing: grids.Spacing, shift: float, first: float = 1.0) -> Tensor:
    return torch.tensor(grids.times(schedule.name, num_steps, spacing, shift, first), dtype=torch.float64)


def follow(
    rule: samplers.Rule,
    denoise: Denoiser,
    schedule: Schedule,
    z: Tensor,
    times: Tensor,
    noise_at_step: Callable[[int], Tensor] = trajectory.no_noise,
) -> Tensor:
    return trajectory.follow(rule, denoise, schedule, z, times.tolist(), noise_at_step)


def gaussian_denoiser(schedule: Schedule, mean: float = MEAN, std: float = STD) -> Denoiser:
    """E[z0 | z_t] for data N(mean, std^2): the posterior mean of a Gaussian seen through Gaussian noise."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (f(t.double()).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return (mean + gain * (z.double() - alpha * mean)).to(z.dtype)

    return denoise


def exact_endpoint(noise: Tensor) -> Tensor:
    """Where the probability flow of Gaussian data ends: it keeps (z - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)."""
    return MEAN + STD * noise


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def endpoint_error(sampler, schedule: Schedule, num_steps: int, noise: Tensor) -> float:
    times = time_grid(schedule, num_steps, "uniform", 1.0)
    z = follow(sampler, gaussian_denoiser(schedule), schedule, noise, times)
    return float((z - exact_endpoint(noise)).abs().max())


@pytest.mark.parametrize(
    ("name", "of_ddim", "of_2m"), [("flow", 2e-2, 1e-3), ("cosine", 2e-2, 1e-3), ("zero_terminal_snr", 5e-2, 2.5e-2)]
)
def test_both_samplers_reach_the_exact_endpoint_of_gaussian_data(name, of_ddim, of_2m, noise):
    # These schedules end in (almost) pure noise, so the flow maps N(0, 1) exactly onto N(mean, std^2).
    assert endpoint_error(samplers.ddim, Schedule(name), 200, noise) < of_ddim
    assert endpoint_error(samplers.dpm_solver_pp_2m, Schedule(name), 200, noise) < of_2m


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.dpm_solver_pp_2m])
@pytest.mark.parametrize("first", [0.7, 0.3])
def test_a_sampler_starts_at_any_time_from_the_latent_there(sampler, first, noise):
    """The flow of Gaussian data is known: the latent at `first` goes on to where the one at 1 went."""
    schedule, denoise = FLOW, gaussian_denoiser(FLOW)
    fine = time_grid(schedule, 2000, "uniform", 1.0)
    half = fine[fine >= first - 1e-9]
    there = follow(sampler, denoise, schedule, noise, half)
    whole = follow(sampler, denoise, schedule, noise, fine)
    assert float(half[-1]) == pytest.approx(first)
    found = follow(sampler, denoise, schedule, there, time_grid(schedule, 200, "uniform", 1.0, first))
    assert float((found - whole).abs().max()) < 2e-2


@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_grid_from_any_time_falls_to_zero(spacing, shift):
    for name in ("flow", "cosine", "zero_terminal_snr"):
        times = time_grid(Schedule(name), 8, spacing, shift, 0.6)
        assert len(times) == 9 and float(times[0]) == pytest.approx(0.6) and times[-1] == 0
        assert bool((times.diff() < 0).all())


def test_ddim_is_of_first_order_and_2m_of_second(noise):
    # The ends of the grid, where steps in log-SNR do not shrink, cost 2M some of its order at few steps.
    for sampler, low, high in ((samplers.ddim, 0.9, 1.1), (samplers.dpm_solver_pp_2m, 1.6, 2.2)):
        errors = [endpoint_error(sampler, FLOW, n, noise) for n in (80, 160, 320, 640)]
        orders = [math.log2(a / b) for a, b in pairwise(errors)]
        assert all(low < order < high for order in orders), (sampler.__name__, orders)


@pytest.mark.parametrize("name", ["flow", "cosine"])
@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_2m_beats_ddim_at_equal_steps(name, num_steps, noise):
    errors = [endpoint_error(s, Schedule(name), num_steps, noise) for s in (samplers.dpm_solver_pp_2m, samplers.ddim)]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_sampling_of_gaussian_data_has_the_exact_mean_and_variance(eta):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 200, 200, dtype=torch.float64, generator=generator)
    fresh = [torch.randn(noise.shape, dtype=torch.float64, generator=generator) for _ in range(100)]
    times = time_grid(FLOW, 100, "uniform", 1.0)
    z = follow(partial(samplers.ddim, eta=eta), gaussian_denoiser(FLOW), FLOW, noise, times, fresh.__getitem__)
    assert abs(float(z.mean()) - MEAN) < 0.01
    assert abs(float(z.std()) - STD) < 0.015


def test_an_ancestral_step_from_pure_noise_keeps_none_of_it():
    noise, fresh = torch.randn(2, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([1.0, 0.6], dtype=torch.float64)
    ancestral = partial(samplers.ddim, eta=1.0)
    z = follow(ancestral, lambda z, t: torch.zeros_like(z), FLOW, noise, times, lambda _: fresh)
    torch.testing.assert_close(z, 0.6 * fresh)


@pytest.mark.parametrize("name", ["flow", "zero_terminal_snr"])
def test_2m_takes_its_first_two_steps_from_pure_noise_without_extrapolation(name, noise):
    schedule, answers = Schedule(name), iter([1.0, -2.0])
    times = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
    found = follow(samplers.dpm_solver_pp_2m, lambda z, t: torch.full_like(z, next(answers)), schedule, noise, times)
    answers = iter([1.0, -2.0])
    expected = follow(samplers.ddim, lambda z, t: torch.full_like(z, next(answers)), schedule, noise, times)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_one_step_is_the_denoised_start():
    noise = torch.randn(1, 1, 2, 2)
    times = time_grid(FLOW, 1, "log_snr", 1.0)
    expected = gaussian_denoiser(FLOW)(noise, torch.ones(1))
    for sampler in (samplers.ddim, samplers.dpm_solver_pp_2m):
        assert torch.equal(follow(sampler, gaussian_denoiser(FLOW), FLOW, noise, times), expected)


@pytest.mark.parametrize("name", ["flow", "linear", "cosine", "zero_terminal_snr"])
@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
def test_grid_falls_strictly_from_one_to_zero(name, spacing):
    times = time_grid(Schedule(name), 12, spacing, 3.0)
    assert times[0] == 1 and times[-1] == 0 and len(times) == 13
    assert bool((times.diff() < 0).all())


def test_log_snr_grid_is_even_in_log_snr():
    inner = time_grid(Schedule("linear"), 10, "log_snr", 1.0)[1:-1]
    steps = Schedule("linear").log_snr(inner).diff()
    assert torch.allclose(steps, steps[0].expand_as(steps), rtol=1e-6)


def test_shift_is_the_formula_of_stable_diffusion_3():
    t = time_grid(FLOW, 4, "uniform", 1.0)
    assert torch.allclose(time_grid(FLOW, 4, "uniform", 3.0), 3 * t / (1 + 2 * t))


def mixture_denoiser(schedule: Schedule) -> Denoiser:
    """Exact denoiser of data that is -1 or 1 with equal odds: E[z0 | z] = tanh(alpha z / sigma^2)."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
        return torch.tanh(alpha * z / sigma**2)

    return denoise


def diffusers_sample(scheduler, schedule: Schedule, noise: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The sample of a diffusers scheduler that is told z0_hat, and the times (index k is the state after k + 1 steps)
    at which it asked."""
    scheduler.set_timesteps(20)
    denoise, z = mixture_denoiser(schedule), noise
    for t in scheduler.timesteps:
        time = torch.full((len(z),), (int(t) + 1) / 1000, dtype=torch.float64)
        z = scheduler.step(denoise(z, time), t, z, **options).prev_sample
    return z, torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])


COMMON = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "sample"}


def test_ddim_agrees_with_diffusers(noise):
    from diffusers import DDIMScheduler

    schedule = Schedule("scaled_linear")
    scheduler = DDIMScheduler(**COMMON, clip_sample=False, timestep_spacing="trailing")
    expected, times = diffusers_sample(scheduler, schedule, noise)
    found = follow(samplers.ddim, mixture_denoiser(schedule), schedule, noise, times)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_ancestral_ddim_agrees_with_diffusers(noise):
    from diffusers import DDIMScheduler

    schedule, fresh = (
        Schedule("scaled_linear"),
        torch.randn(noise.shape, dtype=noise.dtype, generator=torch.Generator().manual_seed(2)),
    )
    scheduler = DDIMScheduler(**COMMON, clip_sample=False, timestep_spacing="trailing")
    expected, times = diffusers_sample(scheduler, schedule, noise, eta=0.6, variance_noise=fresh)
    found = follow(partial(samplers.ddim, eta=0.6), mixture_denoiser(schedule), schedule, noise, times, lambda _: fresh)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_2m_agrees_with_diffusers(noise):
    from diffusers import DPMSolverMultistepScheduler

    schedule = Schedule("scaled_linear")
    scheduler = DPMSolverMultistepScheduler(**COMMON, timestep_spacing="trailing", final_sigmas_type="zero")
    expected, times = diffusers_sample(scheduler, schedule, noise)
    found = follow(samplers.dpm_solver_pp_2m, mixture_denoiser(schedule), schedule, noise, times)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def constant(value: float) -> Denoiser:
    return lambda z, t: torch.full_like(z, value)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 2.0), (1.0, 3.0), (4.0, 6.0)])
def test_guidance_extrapolates_from_the_unconditional(scale, expected):
    guided = guidance.guide(constant(3.0), constant(2.0), scale, (0.0, 1.0))
    assert torch.equal(guided(torch.zeros(2, 1, 1, 1), torch.full((2,), 0.5)), torch.full((2, 1, 1, 1), expected))


def test_guidance_acts_within_its_interval_only():
    guided = guidance.guide(constant(3.0), constant(2.0), 4.0, (0.25, 0.75))
    rows = guided(torch.zeros(5, 1, 1, 1), torch.tensor([0.2, 0.25, 0.5, 0.75, 0.8]))
    assert rows.flatten().tolist() == [3, 6, 6, 6, 3]


def test_unguided_sampling_never_calls_the_unconditional_denoiser():
    def refuse(z: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    z, t = torch.zeros(1, 1, 1, 1), torch.full((1,), 0.9)
    assert guidance.guide(constant(3.0), refuse, 1.0, (0.0, 1.0))(z, t) == 3
    assert guidance.guide(constant(3.0), refuse, 4.0, (0.0, 0.8))(z, t) == 3


def test_noise_belongs_to_the_prompt_not_to_its_batch():
    whole = trajectory.prompt_noise(0, [0, 1, 2, 3], (4, 2, 2))
    assert torch.equal(torch.cat([trajectory.prompt_noise(0, [n], (4, 2, 2)) for n in range(4)]), whole)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, trajectory.prompt_noise(1, [0, 1, 2, 3], (4, 2, 2)))
    steps = trajectory.prompt_noise_at_step(0, [0, 1], (4, 2, 2))
    assert not torch.equal(steps(0), steps(1)) and not torch.equal(steps(0), whole[:2])


def test_noise_is_standard_normal():
    noise = trajectory.prompt_noise(0, range(64), (4, 16, 16))
    assert abs(float(noise.mean())) < 0.015 and abs(float(noise.std()) - 1) < 0.015
