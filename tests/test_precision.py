import pytest
import torch

from ldm.compute.precision import DTYPES, autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", DTYPES)
def test_products_are_of_the_named_type_whatever_autocast_is_around(precision):
    x = torch.ones(2, 2)
    for outer in DTYPES:
        with autocast(CPU, outer), autocast(CPU, precision):
            assert (x @ x).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert (x @ x).dtype == torch.float32
