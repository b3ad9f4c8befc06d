"""Spherical interpolation, and the path that a sampler makes of it."""

import math
from itertools import pairwise

import pytest
import torch

from ldm.analytic.mixture import Mixture
from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import Schedule
from ldm.sampling import grids, trajectory
from ldm.sampling.samplers.ancestral import ddim
from ldm.tools.tasks import interpolation

FRACTIONS = [i / 20 for i in range(21)]


def slerp(first: torch.Tensor, last: torch.Tensor, fraction: float) -> torch.Tensor:
    return interpolation.slerp(first, last, torch.full((len(first),), fraction, dtype=torch.float64))


def noises(seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return first, scale * second


def test_a_quarter_turn_goes_through_the_middle_of_the_arc():
    first, second = (
        torch.tensor([[3.0, 0, 0, 0]]).reshape(1, 1, 2, 2),
        torch.tensor([[0.0, 3, 0, 0]]).reshape(1, 1, 2, 2),
    )
    for fraction in FRACTIONS:
        found = slerp(first, second, fraction).flatten()
        angle = fraction * math.pi / 2
        torch.testing.assert_close(found, torch.tensor([3 * math.cos(angle), 3 * math.sin(angle), 0, 0]))


def test_the_ends_are_the_noises_and_rows_go_their_own_ways():
    first, second = noises(scale=1.5)
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)
    found = interpolation.slerp(first, second, torch.tensor([0.0, 0.3, 1.0]))
    expected = [slerp(first[i : i + 1], second[i : i + 1], f) for i, f in enumerate((0.0, 0.3, 1.0))]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-6, atol=1e-6)
    assert slerp(first.float(), second.float(), 0.3).dtype == torch.float32


def test_the_norm_is_kept_where_a_mean_would_lose_it():
    first, second = noises()
    norms = [first.flatten(1).norm(dim=1), second.flatten(1).norm(dim=1)]
    for fraction in FRACTIONS:
        expected = torch.lerp(*norms, fraction)
        torch.testing.assert_close(slerp(first, second, fraction).flatten(1).norm(dim=1), expected)
    assert float(torch.lerp(first, second, 0.5).flatten(1).norm(dim=1).max()) < 0.85 * float(norms[0].min())


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-9, -1.0])
def test_parallel_and_opposite_rows_are_mixed_linearly(factor: float):
    first, _ = noises()
    found = slerp(first, factor * first, 0.25)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, (0.75 + 0.25 * factor) * first)


@pytest.mark.parametrize("name", ["flow", "linear"])
def test_images_along_the_arc_change_without_a_jump(name: str):
    """The flow of Gaussian data is affine, so an image moves by at most the largest deviation of the data times what
    its noise moves; and the noise moves by at most the arc's twentieth part, which is a half turn's at most."""
    data = Mixture.gaussian([0.5, -0.5], [[1.0, 0.9], [0.9, 1.0]])
    first, second = torch.randn(2, 20, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = grids.times(name, 20, "uniform", 1.0)
    path = [
        trajectory.follow(ddim, data.denoiser(Schedule(name)), Schedule(name), slerp(first, second, f), times)
        for f in FRACTIONS
    ]
    largest = math.sqrt(1.9)
    norms = [x.flatten(1).norm(dim=1) for x in (first, second)]
    bound = math.pi / 20 * torch.maximum(*norms) + (norms[0] - norms[1]).abs() / 20
    for (z, next_z), (f, next_f) in zip(pairwise(path), pairwise(FRACTIONS), strict=True):
        step = (slerp(first, second, next_f) - slerp(first, second, f)).flatten(1).norm(dim=1)
        moved = (next_z - z).flatten(1).norm(dim=1)
        assert bool((moved <= 1.05 * largest * step).all())
        assert bool((step <= bound).all())


def test_a_condition_between_two_has_every_part_between_theirs():
    first, last = (Condition(torch.full((3, 2, 4), value), pooled=torch.full((3, 5), -value)) for value in (1.0, 2.0))
    found = interpolation.between(first, last, torch.tensor([0.0, 0.25, 1.0]))
    assert found.tokens[:, 0, 0].tolist() == [1, 1.25, 2] and found.pooled is not None
    assert found.pooled[:, 4].tolist() == [-1, -1.25, -2]
