"""Section `train_unet`: the denoiser, its forward process, its loss and its training."""

from pydantic import Field

from ldm.core.config import BESIDE, Section
from ldm.denoiser.model.params import DiffusionParams, UNetParams
from ldm.training.params import TrainingParams


class TrainUNetParams(Section):
    """Section `train_unet` of params.yaml."""

    network: UNetParams
    diffusion: DiffusionParams
    training: TrainingParams
    init_from: str | None
    """Folder of a trained unet to start from, or null."""
    num_validation_samples: int = Field(gt=0, json_schema_extra=BESIDE)
    """Latents of the validation split that the validation loss is taken over (fewer if the split has fewer)."""
    num_validation_buckets: int = Field(ge=1, le=20, json_schema_extra=BESIDE)
    """Equal slices of the training times for which a validation loss of its own is reported."""
    num_pictures: int = Field(ge=1, le=64, json_schema_extra=BESIDE)
    """Validation latents shown in the picture of one-step predictions."""
