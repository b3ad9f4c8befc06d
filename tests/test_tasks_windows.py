"""MultiDiffusion: a denoiser on windows is one of a larger latent."""

import pytest
import torch
from torch import Tensor

from ldm.tools.tasks import windows


def test_cells_that_do_not_depend_on_each_other_are_denoised_as_by_one_call() -> None:
    z, t = torch.randn(2, 3, 7, 9), torch.tensor([0.2, 0.7])

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        return z * t.reshape(-1, 1, 1, 1)

    for stride in (1, 2, 4):
        assert torch.allclose(windows.windowed(denoise, (4, 4), stride)(z, t), denoise(z, t), atol=1e-6)


def test_where_windows_overlap_their_answers_are_averaged() -> None:
    seen: list[Tensor] = []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        seen.append(z)
        return torch.full_like(z, len(seen))

    z = torch.arange(6.0).reshape(1, 1, 1, 6)
    assert windows.windowed(denoise, (1, 4), 2)(z, torch.ones(1)).flatten().tolist() == [1, 1, 1.5, 1.5, 2, 2]
    assert [window.flatten().tolist() for window in seen] == [[0, 1, 2, 3], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("length", "stride", "found"), [(4, 2, [0]), (8, 2, [0, 2, 4]), (9, 4, [0, 4, 5]), (5, 9, [0, 1])]
)
def test_windows_cover_everything_and_end_at_the_border(length: int, stride: int, found: list[int]) -> None:
    assert list(windows.starts(length, 4, stride)) == found


@pytest.mark.parametrize(("length", "stride", "expected"), [(96, 72, False), (192, 64, False), (192, 72, True)])
def test_windows_leave_gaps_if_two_neighbours_are_further_apart_than_one_is_long(
    length: int, stride: int, expected: bool
) -> None:
    assert windows.leave_gaps(length, 64, stride) == expected
