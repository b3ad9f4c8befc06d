"""RePaint on data whose conditional distribution is known."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldm.denoiser.model.diffusion import Denoiser, Schedule
from ldm.sampling import grids, samplers
from ldm.sampling.samplers.ancestral import DDPMParams
from ldm.tools.tasks import repaint
from tests.analytic import SAMPLERS, Mixture

PAIR = Mixture.gaussian([0, 0], [[1, 0.9], [0.9, 1]])
DDPM = samplers.build(DDPMParams(kind="ddpm", variance=0))


def no_noises(descent: int):
    """Without noise a linear sampler makes the mean of its samples."""
    return lambda step: torch.zeros(1, 2, 1, 1, dtype=torch.float64)


def counted(schedule: Schedule, calls: list[float]) -> Denoiser:
    """The exact denoiser of `PAIR`: it is linear, so its answers to unit vectors, kept by time, say all."""

    @cache
    def gain(time: float) -> Tensor:
        state = grids.State(schedule.name, time)
        return PAIR.denoised(torch.eye(2).double(), state.alpha, state.sigma)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return (z.flatten(1) @ gain(float(t[0]))).reshape(z.shape)

    return denoise


def conditional_mean(num_resamplings: int, calls: list[float]) -> float:
    """Mean of the second coordinate given that the first is 1: 250 steps, jumps of 10, as in the paper."""
    schedule = Schedule("cosine")
    z0, unknown = torch.ones(1, 2, 1, 1).double(), torch.tensor([False, True]).reshape(1, 2, 1, 1)
    denoise = repaint.knowing(counted(schedule, calls), repaint.known_cells(z0, unknown))
    times = grids.times("cosine", 250, "uniform", 1)
    stretches = repaint.descents(250, num_resamplings, 10)
    z = repaint.repaint(DDPM, denoise, schedule, torch.zeros_like(z0), times, stretches, no_noises)
    assert abs(float(z[0, 0]) - 1) < 1e-12
    return float(z[0, 1])


def test_the_conditional_mean_of_a_gaussian_comes_with_resampling() -> None:
    calls: dict[int, list[float]] = {r: [] for r in (1, 2, 5, 10)}
    means = [conditional_mean(r, calls[r]) for r in calls]
    assert means == pytest.approx([0.62, 0.76, 0.85, 0.88], abs=0.006), "exact: 0.90"
    assert len(calls[1]) == 250 and len(calls[10]) == 2410


@pytest.mark.parametrize(
    ("num_steps", "r", "j"), [(250, 10, 10), (12, 5, 2), (7, 3, 3), (4, 2, 3), (3, 2, 3), (1, 5, 1)]
)
def test_the_number_of_steps_is_that_of_the_paper(num_steps: int, r: int, j: int) -> None:
    stretches = list(repaint.descents(num_steps, r, j))
    assert sum(last - first for first, last in stretches) == num_steps + (r - 1) * j * len(range(0, num_steps - j, j))
    assert stretches[0][0] == 0 and stretches[-1][1] == num_steps
    assert all(first in (before, before - j) for (_, before), (first, _) in pairwise(stretches))


def test_the_order_of_steps_is_that_of_the_papers_code() -> None:
    # Algorithm of `get_schedule_jump`: t falls from T - 1 to -1; our place is T - 1 - t.
    assert list(repaint.descents(6, 2, 2)) == [(0, 3), (1, 3), (3, 5), (3, 5), (5, 6)]
    assert list(repaint.descents(6, 1, 2)) == [(0, 6)], "without resampling, a sampler keeps its past"


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_cells_come_back_by_every_sampler(name: str) -> None:
    schedule, generator = Schedule("flow"), torch.Generator().manual_seed(0)
    z0 = torch.randn(3, 1, 2, 2, generator=generator)
    unknown = torch.tensor([[True, False], [False, False]]).expand(3, 1, 2, 2)
    network = Mixture.gaussian([0.0] * 4, (torch.eye(4) * 0.5 + 0.5).tolist()).denoiser(schedule)
    denoise = repaint.knowing(network, repaint.known_cells(z0, unknown))

    def noises(descent: int):
        return lambda step: torch.randn(3, 1, 2, 2, generator=generator)

    times, rule = grids.times("flow", 6, "uniform", 1), samplers.build(SAMPLERS[name][0])
    start, stretches = torch.randn(3, 1, 2, 2, generator=generator), repaint.descents(6, 2, 2)
    z = repaint.repaint(rule, denoise, schedule, start, times, stretches, noises)
    assert torch.allclose(z[~unknown], z0[~unknown], atol=1e-5)
    assert not torch.allclose(z[unknown], z0[unknown], atol=1e-3)


@pytest.mark.parametrize("name", ["flow", "cosine", "linear"])
def test_a_jump_up_is_the_forward_process(name: str) -> None:
    early, late = (grids.State(name, time) for time in (0.3, 0.7))
    z0, noise = torch.ones(1, 2, 1, 1).double(), torch.ones(1, 2, 1, 1).double()
    kept = float(repaint.noisier(Schedule(name), z0, 0.3, 0.7, 0 * noise)[0, 0])
    added = float(repaint.noisier(Schedule(name), 0 * z0, 0.3, 0.7, noise)[0, 0])
    assert kept * early.alpha == pytest.approx(late.alpha)
    assert math.hypot(kept * early.sigma, added) == pytest.approx(late.sigma)


def test_a_cell_is_unknown_if_any_of_its_pixels_is() -> None:
    unknown = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    unknown[0, 0, 3, 4] = True
    assert repaint.cells(unknown, 4)[0, 0].tolist() == [[False, True], [False, False]]


def test_known_pixels_are_put_into_the_decoded_latent() -> None:
    def decode(z: Tensor) -> Tensor:
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def encode(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2)

    unknown = torch.tensor([[False, True], [True, True]])
    knowledge = repaint.known_pixels(torch.full((1, 1, 2, 2), 5.0), unknown, decode, encode)
    assert float(knowledge(torch.ones(1, 1, 1, 1))) == (5 + 1 + 1 + 1) / 4
