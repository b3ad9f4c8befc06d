"""The noise level of an image, and the posterior mean that it leads to."""

import pytest
import torch
from torch import Tensor

from ldm.denoiser.model.diffusion import Schedule
from ldm.sampling import grids
from ldm.tools.tasks import restoration


def scene(generator: torch.Generator) -> Tensor:
    """Flat regions with edges, among them pure white and black ones: signals of 64 x 64."""
    x = torch.empty(4, 3, 64, 64)
    x[:] = torch.tensor([1.0, -1.0, 0.0, 0.4]).reshape(4, 1, 1, 1)
    x[:, :, 10:30, 15:40] = torch.rand(4, 3, 1, 1, generator=generator) * 2 - 1
    x[:, :, 35:58, 5:25] = torch.rand(4, 3, 1, 1, generator=generator) * 2 - 1
    return x


def eight_bits(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@pytest.mark.parametrize("level", [0.05, 0.2, 0.4, 0.8])
@pytest.mark.parametrize("stored", [lambda x: x, eight_bits], ids=["float", "8 bits"])
def test_the_level_of_noise_is_found_within_a_few_percent_though_bytes_cut_it_off(level: float, stored):
    generator = torch.Generator().manual_seed(0)
    x = scene(generator)
    found = restoration.noise_level(stored(x + level * torch.randn(x.shape, generator=generator)))
    assert found.mean() == pytest.approx(level, rel=0.05)
    assert bool(((found / level - 1).abs() < 0.12).all())


def test_an_image_without_noise_has_none_and_one_cut_at_both_ends_says_nothing():
    assert bool((restoration.noise_level(scene(torch.Generator().manual_seed(0))) == 0).all())
    halves = torch.randint(0, 2, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    assert float(restoration.noise_level(halves)) == 0


@pytest.mark.parametrize("name", ["flow", "linear", "cosine"])
def test_the_time_of_a_noise_level_has_it(name: str):
    for ratio in (0.05, 0.5, 2.0):
        t = torch.tensor([restoration.time_of(Schedule(name), ratio)], dtype=torch.float64)
        assert float(Schedule(name).sigma(t) / Schedule(name).alpha(t)) == pytest.approx(ratio, rel=1e-6)
    assert restoration.time_of(Schedule(name), 0.0) == 0


@pytest.mark.parametrize("name", ["flow", "linear"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_gaussian_data_are_denoised_as_by_wiener(name: str, scale: float):
    """Latents are pixels times `scale`; their data are N(mean, variance), and the network is the exact denoiser.

    Noise of signs has a deviation of exactly 1, so the level in latents is `scale` times that in pixels. Wiener: the
    mean, and of the distance from it the share variance / (variance + noise)."""
    schedule, mean, variance = Schedule(name), 0.2, 0.5

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (z - alpha * mean)

    generator = torch.Generator().manual_seed(0)
    x = (mean + 0.1 * torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=generator)) / scale
    signs = torch.randint(0, 2, x.shape, generator=generator).double() * 2 - 1
    found, level, t = restoration.restore(denoise, schedule, lambda x: scale * x, lambda z: z / scale, x, signs)
    noise = (scale * level).square().reshape(-1, 1, 1, 1)
    expected = (mean + variance / (variance + noise) * (scale * x - mean)) / scale
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert bool((level > 0).all()) and [restoration.time_of(schedule, float(n.sqrt())) for n in noise] == pytest.approx(
        t.tolist()
    )


def test_every_image_of_a_batch_has_its_own_level_and_time():
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([0.05, 0.1, 0.2, 0.4]).reshape(-1, 1, 1, 1)
    x = scene(generator) + levels * torch.randn(4, 3, 64, 64, generator=generator)
    asked: list[list[float]] = []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        return z

    noise = torch.randn(x.shape, generator=generator)
    _, level, t = restoration.restore(denoise, Schedule("flow"), lambda x: 2 * x, lambda z: z / 2, x, noise)
    assert asked == [t.tolist()]
    states = [grids.State("flow", time) for time in t.tolist()]
    assert [state.sigma / state.alpha for state in states] == pytest.approx((2 * level).tolist(), rel=0.03)
    assert torch.equal(level, restoration.noise_level(x))
    told = 2 * level
    assert torch.equal(
        restoration.restore(denoise, Schedule("flow"), lambda x: x, lambda z: z, x, noise, told)[1], told
    )
