"""SDEdit: how many steps are taken, and how much of the image is left."""

import pytest
import torch

from ldm.denoiser.model.diffusion import Schedule
from ldm.sampling import grids, samplers
from ldm.sampling.samplers.ancestral import DDIMParams
from ldm.tools.tasks import sdedit
from tests.analytic import Mixture

DDIM = samplers.build(DDIMParams(kind="ddim", eta=0))


@pytest.mark.parametrize(("strength", "num"), [(0, 0), (0.04, 0), (0.1, 1), (0.6, 7), (0.99, 12), (1, 12)])
def test_the_share_of_steps_is_the_strength(strength: float, num: int) -> None:
    times = grids.times("flow", 12, "uniform", 1)
    last = sdedit.last_times(times, strength)
    assert len(last) - 1 == num == round(strength * 12) and list(last) == times[12 - num :]


def test_strength_0_gives_the_latent_back_and_calls_nothing() -> None:
    z0 = torch.randn(2, 1, 1, 1)
    assert sdedit.img2img(DDIM, lambda z, t: z / 0, Schedule("flow"), z0, [0.0], z0) is z0


@pytest.mark.parametrize("name", ["flow", "zero_terminal_snr"])
def test_at_strength_1_nothing_of_the_image_is_left(name: str) -> None:
    schedule, noise = Schedule(name), torch.randn(2, 1, 1, 1, dtype=torch.float64)
    denoise = Mixture.gaussian([1], [[2]]).denoiser(schedule)
    times = sdedit.last_times(grids.times(name, 8, "uniform", 1), 1)
    first, second = (sdedit.img2img(DDIM, denoise, schedule, z0, times, noise) for z0 in (noise, 7 - noise))
    assert torch.equal(first, second)
    assert not torch.allclose(
        *(sdedit.img2img(DDIM, denoise, schedule, z, times[1:], noise) for z in (noise, 7 - noise))
    )


def test_what_is_left_of_a_gaussian_is_alpha_of_the_start() -> None:
    # The probability flow of N(0, 1) under a variance preserving schedule is the identity: what goes in comes out.
    schedule, z0 = Schedule("cosine"), torch.tensor([2.0]).double().reshape(1, 1, 1, 1)
    denoise, times = Mixture.gaussian([0], [[1]]).denoiser(schedule), grids.times("cosine", 400, "uniform", 1)
    for strength in (0.25, 0.5, 0.75):
        last = sdedit.last_times(times, strength)
        z = sdedit.img2img(DDIM, denoise, schedule, z0, last, torch.zeros_like(z0))
        assert float(z) == pytest.approx(2 * grids.State("cosine", strength).alpha, rel=5e-3)
