"""Number types by name, and autocast to them."""

import torch

from ldm.core.params import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The type of matrix products and convolutions; weights, sums and outputs of networks stay float32."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context with matrix products and convolutions in `precision`; fp32 also disables an enclosing autocast."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
