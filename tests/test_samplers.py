import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from ldm.analytic.mixture import Mixture
from ldm.analytic.moments import divergence, moments
from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import grids, samplers, trajectory
from ldm.sampling.samplers.ancestral import ddim, ddpm
from ldm.sampling.samplers.dpm_solver import dpm_solver_pp_2m
from ldm.sampling.samplers.edm import EDMParams, heun
from ldm.sampling.samplers.reverse_sde import euler_maruyama, predictor_corrector
from ldm.sampling.samplers.rule import Rule, Step
from tests.analytic import SAMPLERS

FLOW = Schedule("flow")
MEAN, STD = 0.7, 0.4


def time_grid(schedule: Schedule, num_steps: int, spacing: grids.Spacing, shift: float, first: float = 1.0) -> Tensor:
    return torch.tensor(grids.times(schedule.name, num_steps, spacing, shift, first), dtype=torch.float64)


def follow(
    rule: Rule,
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
    assert endpoint_error(ddim, Schedule(name), 200, noise) < of_ddim
    assert endpoint_error(dpm_solver_pp_2m, Schedule(name), 200, noise) < of_2m


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp_2m])
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


@pytest.mark.parametrize("spacing", ["uniform", "trailing", "quadratic", "log_snr", "karras"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_grid_from_any_time_falls_to_zero(spacing, shift):
    for name in ("flow", "cosine", "zero_terminal_snr"):
        times = time_grid(Schedule(name), 8, spacing, shift, 0.6)
        assert len(times) == 9 and float(times[0]) == pytest.approx(0.6) and times[-1] == 0
        assert bool((times.diff() < 0).all())


def test_ddim_is_of_first_order_and_2m_of_second(noise):
    # The ends of the grid, where steps in log-SNR do not shrink, cost 2M some of its order at few steps.
    for sampler, low, high in ((ddim, 0.9, 1.1), (dpm_solver_pp_2m, 1.6, 2.2)):
        errors = [endpoint_error(sampler, FLOW, n, noise) for n in (80, 160, 320, 640)]
        orders = [math.log2(a / b) for a, b in pairwise(errors)]
        assert all(low < order < high for order in orders), (sampler.__name__, orders)


@pytest.mark.parametrize("name", ["flow", "cosine"])
@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_2m_beats_ddim_at_equal_steps(name, num_steps, noise):
    errors = [endpoint_error(s, Schedule(name), num_steps, noise) for s in (dpm_solver_pp_2m, ddim)]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_sampling_of_gaussian_data_has_the_exact_mean_and_variance(eta):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 200, 200, dtype=torch.float64, generator=generator)
    fresh = [torch.randn(noise.shape, dtype=torch.float64, generator=generator) for _ in range(100)]
    times = time_grid(FLOW, 100, "uniform", 1.0)
    z = follow(partial(ddim, eta=eta), gaussian_denoiser(FLOW), FLOW, noise, times, fresh.__getitem__)
    assert abs(float(z.mean()) - MEAN) < 0.01
    assert abs(float(z.std()) - STD) < 0.015


def test_an_ancestral_step_from_pure_noise_keeps_none_of_it():
    noise, fresh = torch.randn(2, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([1.0, 0.6], dtype=torch.float64)
    ancestral = partial(ddim, eta=1.0)
    z = follow(ancestral, lambda z, t: torch.zeros_like(z), FLOW, noise, times, lambda _: fresh)
    torch.testing.assert_close(z, 0.6 * fresh)


@pytest.mark.parametrize("name", ["flow", "zero_terminal_snr"])
def test_2m_takes_its_first_two_steps_from_pure_noise_without_extrapolation(name, noise):
    schedule, answers = Schedule(name), iter([1.0, -2.0])
    times = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
    found = follow(dpm_solver_pp_2m, lambda z, t: torch.full_like(z, next(answers)), schedule, noise, times)
    answers = iter([1.0, -2.0])
    expected = follow(ddim, lambda z, t: torch.full_like(z, next(answers)), schedule, noise, times)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_one_step_is_the_denoised_start():
    noise = torch.randn(1, 1, 2, 2)
    times = time_grid(FLOW, 1, "log_snr", 1.0)
    expected = gaussian_denoiser(FLOW)(noise, torch.ones(1))
    for sampler in (ddim, dpm_solver_pp_2m):
        assert torch.equal(follow(sampler, gaussian_denoiser(FLOW), FLOW, noise, times), expected)


@pytest.mark.parametrize("name", ["flow", "linear", "cosine", "zero_terminal_snr"])
@pytest.mark.parametrize("spacing", ["uniform", "trailing", "quadratic", "log_snr", "karras"])
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


RULES = {name: samplers.build(params) for name, (params, _) in SAMPLERS.items()}
DETERMINISTIC = [name for name, (_, num_noises) in SAMPLERS.items() if num_noises == 0]


def steps_of(name: str, num_steps: int, spacing: grids.Spacing = "uniform") -> list[Step]:
    return list(grids.steps(name, grids.times(name, num_steps, spacing, 1.0)))


def final_moments(name: str, steps: list[Step], mean: float = MEAN, variance: float = STD**2) -> tuple[float, float]:
    return moments(RULES[name], steps, mean, variance, SAMPLERS[name][1] * len(steps))


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_time_alone_is_no_step(name: str, noise: Tensor):
    assert follow(RULES[name], gaussian_denoiser(FLOW), FLOW, noise, torch.tensor([0.5])) is noise


def test_every_kind_is_on_the_bench():
    assert {type(params) for params, _ in SAMPLERS.values()} == set(samplers.kinds())


# `ldm check` refuses pndm with cosine: its first steps multiply errors by sigma / alpha, which begins at 20000.
@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        pair
        for pair in product(SAMPLERS, ("flow", "cosine", "linear", "zero_terminal_snr", "vp", "ve"))
        if pair != ("pndm", "cosine")
    ],
)
def test_samples_of_gaussian_data_have_its_mean_and_deviation(name: str, schedule: str):
    mean, variance = final_moments(name, steps_of(schedule, 200))
    # VE starts from noise of deviation 80, of whose mean 0 the flow keeps STD / 80.
    assert mean == pytest.approx(MEAN, abs=MEAN * STD / 80 + 1e-4 if schedule == "ve" else 3e-3)
    assert math.sqrt(variance) == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("schedule", ["flow", "ve"])
@pytest.mark.parametrize("spacing", ["log_snr", "karras", "quadratic", "trailing"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_spacing_leads_to_the_data(name: str, spacing: grids.Spacing, schedule: str):
    mean, variance = final_moments(name, steps_of(schedule, 400, spacing))
    assert mean == pytest.approx(MEAN, abs=5e-3)
    assert math.sqrt(variance) == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in DETERMINISTIC])
def test_the_error_of_what_adds_noise_halves_with_the_steps(name: str):
    """Weakly of first order at least; Langevin steps alone never quite catch up with the noise."""
    errors = [abs(math.sqrt(final_moments(name, steps_of("cosine", n))[1]) - STD) for n in (100, 200)]
    assert errors[1] < (0.7 if name == "annealed_langevin" else 0.56) * errors[0]


ORDERS = {
    "ddim": (0.95, 1.05),
    "euler": (0.95, 1.05),
    "heun": (1.95, 2.1),
    "plms": (1.95, 2.1),
    "pndm": (1.95, 2.1),
    "dpm_solver_pp_2m": (1.95, 2.6),
    "dpm_solver_pp_2s": (1.95, 2.1),
    "unipc, order 2": (2.7, 3.2),
    "unipc, order 3": (2.9, 5.0),
}


def flow_error(rule: Rule, times: list[float]) -> float:
    """How far a rule leaves the probability flow of Gaussian data, which keeps (z - alpha mean) / deviation."""
    steps, z = list(grids.steps("flow", times)), torch.tensor([1.3], dtype=torch.float64)

    def denoise(z: Tensor, time: float) -> Tensor:
        t = grids.State("flow", time)
        return MEAN + t.alpha * STD**2 / (t.alpha**2 * STD**2 + t.sigma**2) * (z - t.alpha * MEAN)

    def kept(z: Tensor, t: grids.State) -> float:
        return float((z - t.alpha * MEAN) / math.hypot(t.alpha * STD, t.sigma))

    return abs(kept(rule(denoise, z, steps, trajectory.no_noise), steps[-1][1]) - kept(z, steps[0][0]))


def even(high: float, low: float, num_steps: int) -> list[float]:
    return [high + (low - high) * i / num_steps for i in range(num_steps + 1)]


def test_orders_are_those_of_the_papers():
    """Where the log-SNR is finite at both ends; UniPC of order p is of order p + 1, its warm-up of 3 at least."""
    assert ORDERS.keys() == set(DETERMINISTIC)
    for name, (low, high) in ORDERS.items():
        errors = [flow_error(RULES[name], even(0.9, 0.2, n)) for n in (40, 80, 160)]
        assert all(low < math.log2(a / b) < high for a, b in pairwise(errors)), (name, errors)


@pytest.mark.parametrize("name", ["ddim", "heun", "plms", "pndm"])
def test_rising_times_lead_from_data_to_noise(name: str):
    """Inversion, from time 0 on; of the same order as sampling."""
    errors = [flow_error(RULES[name], even(0.0, 0.9, n)) for n in (40, 80)]
    order = 1 if name == "ddim" else 2
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_inversion_and_reconstruction_err_as_one_over_the_steps():
    data = Mixture.gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]])
    z0 = data.samples(500, torch.Generator().manual_seed(0))
    errors: list[float] = []
    for num_steps in (10, 50, 100, 200):
        times, denoise = grids.times("linear", num_steps, "uniform", 1.0), data.denoiser(Schedule("linear"))
        noise = trajectory.follow(ddim, denoise, Schedule("linear"), z0, times[::-1])
        again = trajectory.follow(ddim, denoise, Schedule("linear"), noise, times)
        errors.append(float((again - z0).square().mean().sqrt()))
    assert errors[0] < 0.5 and errors[-1] < 0.03
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.3) and errors[2] / errors[3] == pytest.approx(2, abs=0.3)


def test_ddim_twice_is_the_same_to_the_bit(noise: Tensor):
    times = time_grid(FLOW, 7, "uniform", 1.0)
    first, second = (follow(ddim, gaussian_denoiser(FLOW), FLOW, noise, times) for _ in range(2))
    assert torch.equal(first, second)


def test_ancestral_ddim_is_ddpm_with_the_small_variance():
    for name in ("flow", "linear", "zero_terminal_snr"):
        steps = steps_of(name, 30)
        found = moments(partial(ddim, eta=1.0), steps, MEAN, STD**2, 30)
        assert moments(partial(ddpm, variance=0.0), steps, MEAN, STD**2, 30) == pytest.approx(found, rel=1e-9)


def ddpm_covariance(variance: float, num_steps: int) -> tuple[float, float]:
    """Diagonal and other entries for data N(0, [[1, 0.9], [0.9, 1]]), whose principal axes are independent."""
    rule, steps = partial(ddpm, variance=variance), steps_of("linear", num_steps)
    wide, narrow = (moments(rule, steps, 0.0, axis, num_steps)[1] for axis in (1.9, 0.1))
    return (wide + narrow) / 2, (wide - narrow) / 2


def test_both_variances_of_ddpm_give_the_covariance_in_a_thousand_steps_and_differ_in_fifty():
    for variance in (0.0, 1.0):
        assert ddpm_covariance(variance, 1000) == pytest.approx((1, 0.9), abs=0.01)
    assert ddpm_covariance(0.0, 50)[0] < 0.9 < 0.97 < ddpm_covariance(1.0, 50)[0] < 1.01
    assert ddpm_covariance(0.0, 50)[0] < ddpm_covariance(0.5, 50)[0] < ddpm_covariance(1.0, 50)[0]


class Exploding(grids.State):
    """alpha = 1, sigma from 0.01 to 10 by equal factors: the VE process."""

    def __init__(self, time: float) -> None:
        self.time, self.alpha = time, 1.0
        self.sigma = 0.01 * 1000**time if time >= 0 else 0.0
        self.half_log_snr = -math.log(self.sigma) if time >= 0 else math.inf


@pytest.mark.parametrize("num_steps", [25, 50, 100])
def test_langevin_steps_halve_the_divergence_of_ve_sampling(num_steps: int):
    states = [Exploding(1 - i / (num_steps - 1)) for i in range(num_steps)]
    steps = list(pairwise([*states, Exploding(-1.0)]))

    def error(rule: Rule, num_noises: int) -> float:
        return divergence(*moments(rule, steps, MEAN, STD**2, num_noises * num_steps), MEAN, STD**2)

    corrected = error(partial(predictor_corrector, snr=0.16, num_corrections=1), 2)
    assert corrected < 0.7 * error(euler_maruyama, 1)


def test_churn_adds_what_it_says():
    """Between steps of no length, sigma / alpha rises by the factor and the latent gets the noise for it."""
    t, end = grids.State("flow", 0.5), grids.State("flow", 0.0)
    asked: list[float] = []

    def denoise(z: Tensor, time: float) -> Tensor:
        asked.append(time)
        return 0.0 * z if time else z

    z = torch.tensor([1.0, 0.0], dtype=torch.float64)
    heun(denoise, z, [(t, end)], lambda _: torch.tensor([0.0, 1.0], dtype=torch.float64), churn=0.2)
    state = grids.State("flow", asked[0])
    assert state.sigma / state.alpha == pytest.approx(1.2 * t.sigma / t.alpha)
    quiet: list[float] = []
    heun(lambda z, time: (quiet.append(time), z)[1], z, [(t, end)], trajectory.no_noise, churn=0.2, high=0.9)
    assert quiet == [0.5]


def test_churn_is_that_of_the_whole_drawing_in_a_part_of_its_steps():
    """Karras et al. 2022, algorithm 2: gamma = S_churn / N."""
    edm, steps = EDMParams(kind="edm", churn=1, low=0, high=50, noise=1), steps_of("flow", 8)

    def asked(rule: Rule, part: list[Step]) -> list[float]:
        times: list[float] = []
        rule(lambda z, time: (times.append(time), z)[1], 0.0, part, lambda _: 0.0)
        return times

    whole = asked(samplers.build(edm), steps)
    assert asked(samplers.build(edm, 8), steps) == whole
    assert asked(samplers.build(edm, 8), steps[2:5]) == whole[3:9], "pure noise is asked about once"
    assert asked(samplers.build(edm), steps[2:5]) != whole[3:9]


MIXTURE = Mixture.of(
    [0.5, 0.3, 0.2],
    [[-1.0, 0.0], [1.5, 1.0], [0.0, -2.0]],
    [[[0.1, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.2]], [[0.1, 0.0], [0.0, 0.1]]],
)


@pytest.mark.parametrize("schedule", ["flow", "ve"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_a_mixture_have_its_weights_mean_and_covariance(name: str, schedule: str):
    generator, process = torch.Generator().manual_seed(0), Schedule(schedule)
    noise = torch.randn(4000, 2, dtype=torch.float64, generator=generator)
    z = trajectory.follow(
        RULES[name],
        MIXTURE.denoiser(process),
        process,
        trajectory.start(process, noise, 1.0),
        grids.times(schedule, 100, "uniform", 1.0),
        lambda _: torch.randn(noise.shape, dtype=noise.dtype, generator=generator),
    )
    torch.testing.assert_close(z.mean(0), MIXTURE.mean, rtol=0, atol=0.08)
    torch.testing.assert_close(z.T.cov(), MIXTURE.covariance, rtol=0, atol=0.1)
    torch.testing.assert_close(MIXTURE.classify(z).mean(0), MIXTURE.weights, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", ["flow", "linear"])
def test_a_rule_is_linear_and_its_times_do_not_depend_on_latents(name: str, schedule: str):
    """What `ldm check` relies on."""
    generator = torch.Generator().manual_seed(0)
    rule, steps, asked = RULES[name], steps_of(schedule, 6), []

    def final(z: Tensor, fresh: Tensor) -> Tensor:
        times: list[float] = []

        def denoise(z: Tensor, time: float) -> Tensor:
            times.append(time)
            return math.cos(3 * time) * z

        asked.append(times)
        return rule(denoise, z, steps, lambda number: fresh[number])

    a, b = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    fresh_a, fresh_b = torch.randn(2, 60, 3, dtype=torch.float64, generator=generator)
    both = final(2 * a + b, 2 * fresh_a + fresh_b)
    torch.testing.assert_close(both, 2 * final(a, fresh_a) + final(b, fresh_b), rtol=1e-9, atol=1e-9)
    assert asked[0] == asked[1] == asked[2]


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_denoised_start_of_every_sampler(name: str):
    noise = torch.randn(1, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = time_grid(FLOW, 1, "uniform", 1.0)
    expected = gaussian_denoiser(FLOW)(noise, torch.ones(1))
    found = follow(RULES[name], gaussian_denoiser(FLOW), FLOW, noise, times, lambda _: torch.ones_like(noise))
    torch.testing.assert_close(found, expected)


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
