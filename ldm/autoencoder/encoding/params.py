"""Section `encode_latents`: how images are encoded to cached latents."""

from typing import Literal

from pydantic import Field

from ldm.core.config import BESIDE, Section
from ldm.core.params import AskedPrecision


class MeasuredScaleParams(Section):
    """Latents are scaled to mean 0 and deviation 1 in every channel, as measured on the training images."""

    kind: Literal["measured"]
    """Where the scale comes from."""


class StatedScaleParams(Section):
    """Latents z become factor (z - shift), as a denoiser that others have trained expects them."""

    kind: Literal["stated"]
    """Where the scale comes from."""
    factor: float = Field(gt=0, le=1000)
    """What diffusers calls `scaling_factor`: 0.18215 for Stable Diffusion 1 and 2, 0.13025 for SDXL."""
    shift: float = Field(ge=-1000, le=1000)
    """What diffusers calls `shift_factor`: 0 for Stable Diffusion 1, 2 and XL."""


class EncodeLatentsParams(Section):
    """Section `encode_latents` of params.yaml."""

    batch_size: int = Field(gt=0, le=2**16)
    """Images per batch of the encoder."""
    precision: AskedPrecision
    """Precision of the encoder's matrix products and convolutions. auto = bf16 on a GPU that has it, and the faster of
    both on a CPU, measured as the first image is encoded."""
    mirrored: bool
    """Whether every training image is encoded mirrored as well, for `train_unet.mirroring`: twice the work and files.
    Mirroring latents instead would blur images, since autoencoders do not commute with it."""
    scale: MeasuredScaleParams | StatedScaleParams = Field(discriminator="kind", json_schema_extra=BESIDE)
    """Scale of the latents that the denoiser sees. Stored latents do not depend on it."""
    statistics_tolerance: float = Field(gt=0, le=1, json_schema_extra=BESIDE)
    """How far mean and standard deviation of the scaled validation latents may be from 0 and 1, per channel, besides
    what chance explains: five standard errors, which are large where images are few. A stated scale is not checked."""
