import pytest
import torch
from torch import nn

from ldm.compute.precision import DTYPES, autocast, cast_products

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", DTYPES)
def test_products_are_of_the_named_type_whatever_autocast_is_around(precision):
    x = torch.ones(2, 2)
    for outer in DTYPES:
        with autocast(CPU, outer), autocast(CPU, precision):
            assert (x @ x).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert (x @ x).dtype == torch.float32


def test_weights_that_are_cast_once_give_the_bits_of_autocast():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(2), nn.Linear(36, 5), nn.LayerNorm(5)
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    x, cast = torch.randn(2, 3, 8, 8), cast_products(network, "bf16")
    with autocast(CPU, "bf16"), torch.no_grad():
        assert torch.equal(cast(x), network(x))
    assert [p.dtype for p in network.parameters()] == [torch.float32] * 8
    assert [p.dtype == torch.float32 for p in cast.parameters()] == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2
