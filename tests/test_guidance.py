"""Rules of guidance on the analytic bench, where conditional, unconditional and classifier are exact: the components of
a mixture are its classes."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ldm.analytic.mixture import Mixture
from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import grids, trajectory
from ldm.sampling.guidance import rules
from ldm.sampling.samplers.dpm_solver import dpm_solver_pp_2m

LINEAR, FLOW = Schedule("linear"), Schedule("flow")
DATA = Mixture.of([0.5, 0.5], [[-2.0], [2.0]], [[[0.25]], [[0.25]]])
CLASS = 1
PLANE = Mixture.of(
    [0.3, 0.7], [[-1.0, 0.5], [1.0, -0.5]], [[[0.4, 0.1], [0.1, 0.3]], [[0.2, 0.0], [0.0, 0.6]]]
)  # classes that overlap


def points(num: int, dimensions: int = 2) -> Tensor:
    return torch.randn(num, dimensions, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def at(t: float, z: Tensor) -> Tensor:
    return torch.full((len(z),), t, dtype=z.dtype)


def constant(value: float) -> Denoiser:
    return lambda z, t: torch.full_like(z, value)


def refuse(z: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("called")


def classifier(data: Mixture, schedule: Schedule, label: int) -> rules.LogProbability:
    """The exact one, of noisy points."""

    def log_probability(z: Tensor, t: Tensor) -> Tensor:
        noisy = data.noisy(float(schedule.alpha(t[:1])), float(schedule.sigma(t[:1])))
        return noisy.classify(z.flatten(1))[:, label].log()

    return log_probability


def samples(denoise: Denoiser, schedule: Schedule, num: int = 1000) -> Tensor:
    """From the quantiles of the noise, along the probability flow: their moments have no error of sampling."""
    noise = torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num).reshape(-1, 1, 1, 1)
    times = grids.times(schedule.name, 50, "log_snr", 1.0)
    return trajectory.follow(dpm_solver_pp_2m, denoise, schedule, noise, times).flatten()


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 2.0), (1.0, 3.0), (4.0, 6.0)])
def test_guidance_extrapolates_from_the_worse_denoiser(scale: float, expected: float):
    guided = rules.extrapolate(constant(3.0), constant(2.0), scale)
    assert torch.equal(guided(torch.zeros(2, 1, 1, 1), torch.full((2,), 0.5)), torch.full((2, 1, 1, 1), expected))


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_scales_1_and_0_are_one_of_the_denoisers_in_every_bit_and_call_no_other(scale: float, rescale: float):
    own, z = PLANE.component(CLASS).denoiser(LINEAR), points(20).float()
    pair = (own, refuse) if scale == 1 else (refuse, own)
    assert torch.equal(rules.extrapolate(*pair, scale, rescale)(z, at(0.4, z)), own(z, at(0.4, z)))
    guided = rules.follow_classifier(own, refuse, LINEAR, 0.0, rescale)
    assert torch.equal(guided(z, at(0.4, z)), own(z, at(0.4, z)))


def test_one_call_of_two_rows_each_is_two_calls_up_to_a_size():
    better, worse, z = PLANE.component(CLASS).denoiser(LINEAR), PLANE.denoiser(LINEAR), points(20)
    t = torch.linspace(0.1, 0.9, 20, dtype=z.dtype)

    def joint(z: Tensor, t: Tensor) -> Tensor:
        return torch.cat([better(z[:20], t[:20]), worse(z[20:], t[20:])])

    for pair in (
        rules.in_one_batch(joint, refuse, refuse, max_cells=20),
        rules.in_one_batch(refuse, better, worse, max_cells=19),
    ):
        found = rules.extrapolate(better, worse, 3.0, 0.7, pair)(z, t)
        torch.testing.assert_close(found, rules.extrapolate(better, worse, 3.0, 0.7)(z, t))


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_both_formulas_of_classifier_free_guidance_and_that_of_the_noise_agree(weight: float):
    """Ho and Salimans 2022, equation 6: (1 + w) eps(z, c) - w eps(z). Imagen: eps(z) + s (eps(z, c) - eps(z))."""
    conditional, unconditional = PLANE.component(CLASS).denoiser(LINEAR), PLANE.denoiser(LINEAR)
    z, t = points(50), at(0.3, points(50))
    alpha, sigma = float(LINEAR.alpha(t[:1])), float(LINEAR.sigma(t[:1]))

    def eps(z0_hat: Tensor) -> Tensor:
        return (z - alpha * z0_hat) / sigma

    with_prompt, without = eps(conditional(z, t)), eps(unconditional(z, t))
    theirs = (1 + weight) * with_prompt - weight * without
    found = eps(rules.extrapolate(conditional, unconditional, 1 + weight)(z, t))
    torch.testing.assert_close(found, theirs)
    torch.testing.assert_close(without + (1 + weight) * (with_prompt - without), theirs)


def test_the_exact_classifier_at_scale_1_gives_the_class_and_at_scale_0_all_data():
    """features.md, row "ADM": mean 2.000, deviation 0.502 of the samples against 2.000 and 0.500."""
    guide = partial(rules.follow_classifier, DATA.denoiser(LINEAR), classifier(DATA, LINEAR, CLASS), LINEAR)
    of_class, of_all = samples(guide(1.0), LINEAR), samples(guide(0.0), LINEAR)
    assert float(of_class.mean()) == pytest.approx(2.0, abs=0.01)  # z starts without the 0.006 of signal at t = 1
    assert float(of_class.std()) == pytest.approx(0.5, abs=0.004)
    assert float(of_all.mean()) == pytest.approx(0.0, abs=0.001)
    assert float(of_all.std()) == pytest.approx(math.sqrt(4.25), abs=0.004)
    stronger = samples(guide(4.0), LINEAR)
    assert float(stronger.std()) < 0.9 * float(of_class.std()) and float(stronger.mean()) > 2.05


@pytest.mark.parametrize("schedule", [LINEAR, FLOW, Schedule("cosine")])
def test_a_step_by_the_exact_classifier_is_one_of_the_class(schedule: Schedule):
    """Bayes: the denoiser of a class is that of all data and sigma^2 / alpha grad log p(class | z)."""
    guided = rules.follow_classifier(PLANE.denoiser(schedule), classifier(PLANE, schedule, CLASS), schedule, 1.0)
    for time in (0.05, 0.5, 0.9):
        z = points(50)
        with torch.no_grad():  # as where images are made
            found = guided(z, at(time, z))
        torch.testing.assert_close(found, PLANE.component(CLASS).denoiser(schedule)(z, at(time, z)))
        assert not found.requires_grad


def test_a_classifier_does_not_guide_where_no_signal_is_left():
    z = points(5)
    guided = rules.follow_classifier(PLANE.denoiser(FLOW), classifier(PLANE, FLOW, CLASS), FLOW, 3.0)
    assert torch.equal(guided(z, at(1.0, z)), PLANE.denoiser(FLOW)(z, at(1.0, z)))


def test_guidance_against_a_worse_model_takes_back_what_both_lack():
    """Autoguidance (Karras et al. 2024, section 3): own model and worse model are wider than the data by 1 and 2 parts;
    twice the own one minus the worse one cancels the error to first order."""
    widths = [Mixture.gaussian([1.0], [[0.25 * (1 + part)]]).denoiser(FLOW) for part in (0.0, 0.1, 0.2)]
    data, own, worse = widths
    guided = rules.extrapolate(own, worse, 2.0)
    z, t = points(100, 1), at(0.5, points(100, 1))
    error, before = (float((each(z, t) - data(z, t)).abs().max()) for each in (guided, own))
    assert error < 0.2 * before
    exact, wide, narrowed = (float(samples(each, FLOW).std()) for each in (data, own, guided))
    assert abs(narrowed - exact) < 0.2 * (wide - exact)


def test_rescaling_restores_the_deviation_of_the_unguided_prediction():
    z, t = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.full((4,), 0.5)

    def better(z: Tensor, t: Tensor) -> Tensor:
        return 0.8 * z + 0.1 * torch.arange(4.0).reshape(-1, 1, 1, 1)

    def worse(z: Tensor, t: Tensor) -> Tensor:
        return 0.5 * z.roll(1, 3)

    def deviations(scale: float, rescale: float) -> Tensor:
        return rules.extrapolate(better, worse, scale, rescale)(z, t).flatten(1).std(1)

    before, guided = deviations(1.0, 0.0), deviations(5.0, 0.0)
    assert bool((guided > 2 * before).all())
    torch.testing.assert_close(deviations(5.0, 1.0), before)
    torch.testing.assert_close(deviations(5.0, 0.7), 0.7 * before + 0.3 * guided)


def test_rescaling_leaves_an_image_without_deviation():
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    z[0] = 0.5
    found = rules.rescaled(z, z.roll(1, 0), 0.7)
    assert torch.equal(found[0], z[0]) and bool(found.isfinite().all())
    assert torch.equal(rules.rescaled(z[:, :1, :1, :1], z[:, :1, :1, :1], 0.7), z[:, :1, :1, :1])


def test_dynamic_thresholding_keeps_the_limits_and_saturates_less_than_clipping():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 3, 16, 16, generator=generator) * torch.tensor([0.2, 0.5, 1, 2, 3, 5]).reshape(-1, 1, 1, 1)
    t = torch.full((6,), 0.5)

    def limited(quantile: float) -> Tensor:
        return rules.thresholded(lambda z, t: z, quantile)(z, t)

    for quantile in (0.0, 0.9, 0.995, 1.0):
        assert float(limited(quantile).abs().max()) <= 1
    assert torch.equal(limited(0.0), z.clamp(-1, 1))
    assert torch.equal(limited(0.995)[0], z[0]), "an image within the limits is left alone"
    saturated, clipped = ((limited(q)[2:].abs() == 1).float().mean((1, 2, 3)) for q in (0.995, 0.0))
    assert bool((saturated <= 0.006).all()) and bool((clipped > 0.3).all())
    largest = z[5].abs().max()
    torch.testing.assert_close(limited(1.0)[5], z[5] / largest)


def test_guidance_acts_within_its_interval_only():
    guided = rules.within((0.25, 0.75), constant(6.0), constant(3.0))
    rows = guided(torch.zeros(5, 1, 1, 1), torch.tensor([0.2, 0.25, 0.5, 0.75, 0.8]))
    assert rows.flatten().tolist() == [3, 6, 6, 6, 3]
    z = torch.zeros(1, 1, 1, 1)
    assert rules.within((0.0, 0.8), refuse, constant(3.0))(z, at(0.9, z)) == 3
    assert rules.within((0.0, 0.8), constant(6.0), refuse)(z, at(0.8, z)) == 6
    assert rules.within((0.0, 1.0), constant(6.0), refuse)(z, at(1.0, z)) == 6


def test_guidance_in_an_interval_keeps_more_of_the_class_than_guidance_everywhere():
    """Kynkaanniemi et al. 2024: strong guidance at high noise drives samples away and narrows them."""
    conditional, unconditional = DATA.component(CLASS).denoiser(LINEAR), DATA.denoiser(LINEAR)
    everywhere = rules.extrapolate(conditional, unconditional, 4.0)
    middle = rules.within((0.1, 0.4), everywhere, conditional)
    errors = [abs(float(samples(each, LINEAR).mean()) - 2) for each in (middle, everywhere)]
    assert errors[0] < 0.5 * errors[1]
