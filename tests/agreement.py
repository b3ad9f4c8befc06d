"""Agreement of two networks: every difference against the largest entry, never a signed sum."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5


def randomise(model: nn.Module) -> None:
    """Random weights, biases and norms of usual size, the same on every call: zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / parameter[0].numel() ** 0.5
        else:
            parameter.data = parameter.data.round() + 0.1 * noise


def assert_outputs_agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= TOLERANCE * other.abs().max()


def assert_gradients_agree(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Per tensor; one whose gradient nearly cancels (a bias before a norm) holds rounding errors of larger ones."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 0.1 * largest)
        assert (found[name] - gradient).abs().max() <= TOLERANCE * scale, name
