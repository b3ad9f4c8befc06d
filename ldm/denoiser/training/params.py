"""Section `train_unet`: the denoiser, its forward process, its loss and its training."""

from typing import Literal

from pydantic import Field

from ldm.core.config import BESIDE, Section
from ldm.denoiser.model.params import DiffusionParams, NetworkParams
from ldm.training.params import TrainingParams

Trait = Literal["schedule", "prediction", "text_encoder", "autoencoder", "latent_scale"]


class InitFromParams(Section):
    """A trained denoiser to start from. Its network must be the one that is trained here."""

    directory: str
    """Its folder, inside the folder `unet` of `paths.models`."""
    may_differ: list[Trait]
    """What else may be other than it was trained with: the `schedule` or the `prediction` of `diffusion`; the
    `text_encoder` (another null embedding: another CLIP, other settings of `embed_text` or another number of tokens);
    the `autoencoder`; the `latent_scale` (six digits are compared). What is listed and does not differ does no harm."""


class TrainUNetParams(Section):
    """Section `train_unet` of params.yaml."""

    network: NetworkParams
    diffusion: DiffusionParams
    training: TrainingParams
    init_from: InitFromParams | None
    """A trained denoiser to start from; null = random weights."""
    num_validation_samples: int = Field(gt=0, json_schema_extra=BESIDE)
    """Latents of the validation split that the validation loss is taken over (fewer if the split has fewer)."""
    num_validation_buckets: int = Field(ge=1, le=20, json_schema_extra=BESIDE)
    """Equal slices of the training times for which a validation loss of its own is reported."""
    num_pictures: int = Field(ge=1, le=64, json_schema_extra=BESIDE)
    """Validation latents shown in the picture of one-step predictions."""
