"""Section `train_autoencoder`: the autoencoder, its loss and its training."""

from typing import Self

from pydantic import Field, model_validator

from ldm.autoencoder.model.params import AutoencoderParams, IdentityParams, ReconstructionParams
from ldm.core.config import BESIDE, Section
from ldm.core.params import Precision
from ldm.training.params import TrainingParams


class TrainAutoencoderParams(Section):
    """Section `train_autoencoder` of params.yaml."""

    network: AutoencoderParams
    reconstruction: ReconstructionParams | None
    """The loss; null for a network without weights, which is not trained."""
    training: TrainingParams | None
    """How it is trained; null for a network without weights."""
    num_validation_samples: int = Field(gt=0, json_schema_extra=BESIDE)
    """Validation images that the curves are measured on (fewer if the split has fewer); the metrics use all of them."""
    num_pictures: int = Field(ge=1, le=256, json_schema_extra=BESIDE)
    """Validation images shown beside their reconstructions."""

    @property
    def precision(self) -> Precision:
        """Precision of the training; float32 if there is none."""
        return self.training.precision if self.training else "fp32"

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_trained = not isinstance(self.network, IdentityParams)
        for key in ("reconstruction", "training"):
            if (getattr(self, key) is not None) != is_trained:
                reason = f"network.kind {self.network.kind} has {'weights' if is_trained else 'nothing'} to train"
                found, expected = ("null", "values") if is_trained else ("values", "null")
                raise ValueError(f"{key} has {found}; expected {expected}: {reason}")
        return self
