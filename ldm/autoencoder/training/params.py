"""Section `train_autoencoder`: the autoencoder, its loss and its training."""

from pydantic import Field

from ldm.autoencoder.model.params import AutoencoderParams, ReconstructionParams
from ldm.core.config import BESIDE, Section
from ldm.training.params import TrainingParams


class TrainAutoencoderParams(Section):
    """Section `train_autoencoder` of params.yaml."""

    network: AutoencoderParams
    reconstruction: ReconstructionParams
    training: TrainingParams
    num_validation_samples: int = Field(gt=0, json_schema_extra=BESIDE)
    """Validation images that the curves are measured on (fewer if the split has fewer); the metrics use all of them."""
    num_pictures: int = Field(ge=1, le=256, json_schema_extra=BESIDE)
    """Validation images shown beside their reconstructions."""
