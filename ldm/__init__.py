"""Text to image by latent diffusion: `from ldm import Pipeline`.

This file imports no other of the package, so that a stage depends only on what it names. Stages and commands import it
before torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.tools.pipeline import Pipeline as Pipeline

# MKL, which multiplies float32 matrices for torch on x86, chooses its code by the kind of CPU, and with it the order of
# sums. This code is the same on every kind. Trainings multiply in bf16, which is not MKL's, or take it back
# (`ldm.compute.precision`); what does neither (text embeddings, features) takes twice the time. MKL reads it once. A
# user's own setting wins.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")


def __getattr__(name: str) -> Any:
    # No import statement: what a stage runs is read off those, and no stage runs the pipeline of all.
    if name == "Pipeline":
        return import_module("ldm.tools.pipeline").Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
