"""Layers that the autoencoder and the UNet share, on the way that they take on a GPU too."""

import pytest
import torch
from torch import nn

from benchmarks import saved
from ldm.autoencoder.model import blocks
from ldm.compute.precision import DTYPES, autocast
from ldm.denoiser.model.params import UNetParams
from tests.agreement import assert_gradients_agree, randomise
from tests.test_unet import TINY

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# Ours, PyTorch's, and an input.
NORMS = [
    (lambda: blocks.GroupNorm(4, 16, 1e-6), lambda: nn.GroupNorm(4, 16, 1e-6), (2, 16, 5, 6)),
    (lambda: blocks.LayerNorm(16), lambda: nn.LayerNorm(16), (2, 7, 16)),
]


def pair(ours, theirs) -> tuple[nn.Module, nn.Module]:
    one, other = ours(), theirs()
    randomise(one)
    other.load_state_dict(one.state_dict())
    return one, other


def ramp(shape, dtype=torch.float32) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 1
    return values.to(dtype).requires_grad_()


def value_and_gradients(norm: nn.Module, call, x: torch.Tensor) -> dict[str, torch.Tensor]:
    out = call(x)
    weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    gradients = torch.autograd.grad((out.float() * weight).sum(), [x, *norm.parameters()])
    return dict(zip(("out", "x", "weight", "bias"), (out.detach(), *gradients), strict=True))


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("ours", "theirs", "shape"), NORMS)
def test_on_a_cpu_a_norm_has_the_bits_of_pytorchs(ours, theirs, shape, precision, dtype):
    one, other = pair(ours, theirs)
    with autocast(CPU, precision):
        found, expected = (value_and_gradients(norm, norm, ramp(shape, dtype)) for norm in (one, other))
    assert found["out"].dtype == dtype
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("ours", "theirs", "shape"), NORMS)
def test_the_way_of_gpus_computes_the_same(ours, theirs, shape):
    one, other = pair(ours, theirs)
    assert_gradients_agree(
        value_and_gradients(one, one.in_its_type, ramp(shape)), value_and_gradients(other, other, ramp(shape))
    )


@pytest.mark.parametrize(("ours", "theirs", "shape"), NORMS)
def test_in_bf16_it_is_off_by_the_rounding_of_its_output_and_of_its_weights(ours, theirs, shape):
    """Three roundings of 2^-9 each, and sums in float32: the mean of 1 would cost more in bf16."""
    one, other = pair(ours, theirs)
    x = ramp(shape, torch.bfloat16)
    with autocast(CPU, "bf16"):
        found = one.in_its_type(x)
    expected = other.double()(x.double())
    assert found.dtype == torch.bfloat16
    assert ((found - expected).abs() <= 2**-7 * (expected.abs() + other.bias.abs().max())).all()


def test_autocast_on_a_gpu_widens_the_norms_of_pytorch_and_not_ours():
    """The rules are those of CUDA; the GPU computes nothing."""
    types: dict[str, torch.dtype] = {}
    with saved.gpu():
        for norm in (blocks.GroupNorm(4, 16), nn.GroupNorm(4, 16), blocks.LayerNorm(8), nn.LayerNorm(8)):
            module = type(norm).__module__.partition(".")[0]
            types[f"{module}.{type(norm).__name__}"] = norm(torch.empty(2, 16, 8, dtype=torch.bfloat16)).dtype
    ours, theirs = torch.bfloat16, torch.float32
    assert types == {"ldm.GroupNorm": ours, "torch.GroupNorm": theirs, "ldm.LayerNorm": ours, "torch.LayerNorm": theirs}
    assert not torch.is_autocast_enabled("cuda")


def test_a_forward_pass_keeps_less_for_the_backward_pass():
    """A fifth to a third, as in the count that docs/gpu.md quotes."""
    params = UNetParams.model_validate(TINY | {"channels": [16, 32]})
    widened, kept = (saved.bytes_saved(params, 4, widened=each) for each in (True, False))
    assert 1.2 < widened / kept < 1.5


@pytest.mark.gpu
@pytest.mark.parametrize(("ours", "theirs", "shape"), NORMS)
def test_on_a_gpu_a_norm_of_bf16_stays_bf16_and_close(ours, theirs, shape):
    one, other = pair(ours, theirs)
    x = ramp(shape, torch.bfloat16)
    expected = other.double()(x.double())
    with autocast(GPU, "bf16"):
        found = one.to(GPU)(x.to(GPU))
    assert found.dtype == torch.bfloat16
    assert ((found.cpu() - expected).abs() <= 2**-7 * (expected.abs() + other.bias.abs().max())).all()
