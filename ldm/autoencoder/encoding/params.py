"""Section `encode_latents`: how images are encoded to cached latents."""

from pydantic import Field

from ldm.core.config import BESIDE, Section
from ldm.core.params import Precision


class EncodeLatentsParams(Section):
    """Section `encode_latents` of params.yaml."""

    batch_size: int = Field(gt=0, le=2**16)
    """Images per batch of the encoder."""
    precision: Precision
    """Precision of the encoder's matrix products and convolutions."""
    mirrored: bool
    """Whether every training image is encoded mirrored as well, for `train_unet.mirroring`: twice the work and files.
    Mirroring latents instead would blur images, since autoencoders do not commute with it."""
    statistics_tolerance: float = Field(gt=0, le=1, json_schema_extra=BESIDE)
    """How far mean and standard deviation of the scaled validation latents may be from 0 and 1, per channel. Values
    above 0.05 are meant for corpora that are too small to measure them well."""
