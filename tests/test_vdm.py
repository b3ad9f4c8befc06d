"""The bound in continuous time: what a schedule changes, what it does not, and the exact likelihood below it."""

import math

import pytest
import torch
from torch import Tensor

from ldm.analytic import vdm
from ldm.analytic.mixture import Mixture
from ldm.denoiser.model.diffusion import Schedule

DATA = Mixture.of(
    [0.5, 0.3, 0.2],
    [[-1.0, 0.0], [1.5, 1.0], [0.0, -2.0]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]], [[0.4, -0.1], [-0.1, 0.3]]],
)
ENDS = (6.0, -6.0)
SHAPES = {"log_snr": vdm.even_log_snr(*ENDS), "angle": vdm.even_angle(*ENDS), "noise": vdm.even_noise(*ENDS)}
NUM = 40_000


def losses(curve: vdm.Curve, seed: int, num: int = NUM) -> Tensor:
    """Of the exact denoiser, at independent times."""
    generator = torch.Generator().manual_seed(seed)
    z0, t = DATA.samples(num, generator), torch.rand(num, dtype=torch.float64, generator=generator)
    noise = torch.randn(z0.shape, dtype=z0.dtype, generator=generator)
    return vdm.diffusion_losses(DATA.denoised, curve, z0, noise, t).detach()


@pytest.fixture(scope="module")
def learned() -> vdm.LearnedCurve:
    curve = vdm.LearnedCurve(*ENDS)
    vdm.learn(curve, DATA.denoised, DATA.samples, 200, seed=0)
    return curve


def error(values: Tensor) -> float:
    """Standard error of the mean."""
    return float(values.std()) / math.sqrt(len(values))


def test_curves_have_the_same_ends_and_fall(learned: vdm.LearnedCurve):
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    for curve in (*SHAPES.values(), learned):
        log_snr = curve(t).detach()
        assert log_snr[[0, -1]].tolist() == pytest.approx(ENDS)
        assert (log_snr.diff() < 0).all()


def test_two_of_the_shapes_are_schedules_of_the_pipeline():
    """With ends as far apart as those schedules'."""
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    torch.testing.assert_close(vdm.even_noise(60, -60)(t), Schedule("flow").log_snr(t))
    torch.testing.assert_close(vdm.even_angle(60, -60)(t), -2 * torch.tan(t * math.pi / 2).log())


def test_the_loss_is_that_of_the_ends_and_its_variance_that_of_the_shape():
    found = {name: losses(curve, seed) for seed, (name, curve) in enumerate(SHAPES.items())}
    means = {name: (float(values.mean()), error(values)) for name, values in found.items()}
    for mean, width in means.values():
        assert mean == pytest.approx(means["angle"][0], abs=3 * math.hypot(width, means["angle"][1]))
    variances = sorted(float(values.var()) for values in found.values())
    assert variances[1] > 1.15 * variances[0] and variances[2] > 1.15 * variances[1]


def test_a_learned_curve_varies_less_than_all_shapes_and_keeps_the_loss(learned: vdm.LearnedCurve):
    found, shapes = losses(learned, 3), [losses(curve, seed) for seed, curve in enumerate(SHAPES.values())]
    assert float(found.var()) < 0.9 * min(float(values.var()) for values in shapes)
    width = 3 * math.hypot(error(found), error(shapes[1]))
    assert float(found.mean()) == pytest.approx(float(shapes[1].mean()), abs=width)


def test_the_bound_is_the_exact_likelihood_for_the_exact_denoiser(learned: vdm.LearnedCurve):
    """Its three parts, reported apart; a denoiser that errs has a bound above it."""
    z0, generator = DATA.samples(NUM, torch.Generator().manual_seed(7)), torch.Generator().manual_seed(8)
    exact = -DATA.log_density(z0) / math.log(2) / 2
    parts = vdm.bound(DATA.denoised, learned, z0, generator)
    means = parts.means()
    assert means["total"] == pytest.approx(means["prior"] + means["reconstruction"] + means["diffusion"])
    gap = parts.total - exact
    assert float(gap.mean()) == pytest.approx(0, abs=3 * error(gap)) and error(gap) < 0.025

    def shrunk(z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 0.9 * DATA.denoised(z, alpha, sigma)

    wrong = vdm.bound(shrunk, learned, z0, generator).total - exact
    assert float(wrong.mean()) > 10 * error(wrong)


def test_noise_that_hides_less_at_its_end_costs_prior_bits():
    z0, generator = DATA.samples(100, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0)
    near, far = (vdm.bound(DATA.denoised, vdm.even_angle(12, low), z0, generator).means() for low in (-2.0, -10.0))
    assert near["prior"] > 0.05 > 1e-3 > far["prior"] > 0


def test_times_lie_evenly():
    t = vdm.even_times(8, torch.Generator().manual_seed(0))
    assert ((t >= 0) & (t < 1)).all()
    torch.testing.assert_close(t.sort().values.diff(), torch.full((7,), 1 / 8, dtype=torch.float64))
