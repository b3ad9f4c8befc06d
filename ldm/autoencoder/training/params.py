"""Section `train_autoencoder`: the autoencoder, trained on the corpus or brought, its loss and its training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldm.autoencoder.model.params import AutoencoderParams, IdentityParams
from ldm.autoencoder.training.loss_params import ReconstructionParams
from ldm.core.config import BESIDE, Section
from ldm.training.params import TrainingParams


class TrainedAutoencoderParams(Section):
    """An autoencoder that is trained on the corpus."""

    kind: Literal["train"]
    """Where the autoencoder comes from."""
    network: AutoencoderParams
    reconstruction: ReconstructionParams | None
    """The loss; null for a network without weights, which is not trained."""
    training: TrainingParams | None
    """How it is trained; null for a network without weights."""

    @property
    def factor(self) -> int:
        """Side in pixels of the square that one latent position covers."""
        return self.network.factor

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.network.latent_channels

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_trained = not isinstance(self.network, IdentityParams)
        for key in ("reconstruction", "training"):
            if (getattr(self, key) is not None) != is_trained:
                reason = f"network.kind {self.network.kind} has {'weights' if is_trained else 'nothing'} to train"
                found, expected = ("null", "values") if is_trained else ("values", "null")
                raise ValueError(f"{key} has {found}; expected {expected}: {reason}")
        return self


class PretrainedAutoencoderParams(Section):
    """An autoencoder that others have trained: Stable Diffusion's, SDXL's, those of SD3 and FLUX with 16 channels, or a
    DC-AE. Its decoder alone may be trained further, so that latents keep their meaning."""

    kind: Literal["pretrained"]
    """Where the autoencoder comes from."""
    path: Annotated[str, Field(min_length=1)]
    """A folder as diffusers writes it, of the autoencoder or of a whole pipeline, or a single file; below the folder
    `autoencoder` of `paths.models`."""
    factor: int = Field(ge=1, le=128)
    """Side in pixels of the square that one of its latent positions covers (8 for Stable Diffusion)."""
    latent_channels: int = Field(ge=1, le=256)
    """Channels of its latents (4 for Stable Diffusion and SDXL, 16 for SD3 and FLUX, 32 for a DC-AE)."""
    reconstruction: ReconstructionParams | None
    """The loss of the decoder; null = the autoencoder stays as it is."""
    training: TrainingParams | None
    """How the decoder is trained; null = the autoencoder stays as it is."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.reconstruction is None) != (self.training is None):
            raise ValueError("one of reconstruction and training is null; expected both or neither")
        return self


class TrainAutoencoderParams(Section):
    """Section `train_autoencoder` of params.yaml."""

    source: TrainedAutoencoderParams | PretrainedAutoencoderParams = Field(discriminator="kind")
    """Where the autoencoder comes from."""
    num_validation_samples: int = Field(gt=0, json_schema_extra=BESIDE)
    """Validation images that the curves are measured on (fewer if the split has fewer); the metrics use all of them."""
    num_pictures: int = Field(ge=1, le=256, json_schema_extra=BESIDE)
    """Validation images shown beside their reconstructions."""

    @property
    def training(self) -> TrainingParams | None:
        """How it is trained, if it is."""
        return self.source.training

    @property
    def reconstruction(self) -> ReconstructionParams | None:
        """Its loss, if it is trained."""
        return self.source.reconstruction

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        adversarial = self.reconstruction.adversarial if self.reconstruction else None
        if adversarial and self.training and adversarial.start_step >= self.training.num_steps:
            found = f"reconstruction.adversarial.start_step {adversarial.start_step}"
            raise ValueError(f"{found} is never reached; expected less than num_steps {self.training.num_steps}")
        return self
