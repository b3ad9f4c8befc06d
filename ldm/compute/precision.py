"""Types of number, and autocast by their names."""

import torch

from ldm.core.params import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The type of matrix products and convolutions; weights, sums and what leaves a network stay float32."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Matrix products and convolutions in `precision` while it is entered; for fp32 an autocast around it is off."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
