"""Section `train_unet`: the denoiser, its forward process, its loss and its training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldm.core.config import BESIDE, Section
from ldm.denoiser.model.params import DiffusionParams, NetworkParams
from ldm.training.params import AveragesParams, TrainingParams

Trait = Literal["schedule", "prediction", "text_encoder", "autoencoder", "latent_scale"]


class InitFromParams(Section):
    """A trained denoiser to start from: one of this project, or the UNet of Stable Diffusion 1 or 2. Its weights must
    fit the network to train. Latents may have another size; where they have more channels, what is new starts at
    zero."""

    path: str
    """Its folder, that of a pipeline of diffusers, or a single file; below the folder `unet` of `paths.models`."""
    may_differ: list[Trait]
    """Traits that may differ from those it was trained with: `schedule` and `prediction`, which are those of
    `diffusion`; `text_encoder` (compared by the null embedding, which depends on the CLIP, the settings of `embed_text`
    and the number of tokens); `autoencoder`; `latent_scale` (compared to six digits). Listing a trait that does not
    differ has no effect."""


class MirroringParams(Section):
    """Half of the training images are seen mirrored, chosen anew in every epoch."""

    unless: list[Annotated[str, Field(pattern=r"^\S(.*\S)?$")]]
    """Words such as left and right: an image is never mirrored while its caption has one of them, in any case of its
    letters. In scripts with capitals only whole words count."""


class TrainUNetParams(Section):
    """Section `train_unet` of params.yaml."""

    network: NetworkParams
    diffusion: DiffusionParams
    training: TrainingParams
    averages: AveragesParams | None
    """More averages of the weights, of which one of any length can be made; null = only the one of `ema_decay`, which
    then is the result."""
    mirroring: MirroringParams | None
    """Mirrored images, which `encode_latents.mirrored` must have encoded; null = none. Writing in images is mirrored
    too."""
    init_from: InitFromParams | None
    """A trained denoiser to start from; null = random weights."""
    num_validation_samples: int = Field(gt=0, json_schema_extra=BESIDE)
    """Latents of the validation split that the validation loss is measured on (fewer if the split has fewer)."""
    num_validation_buckets: int = Field(ge=1, le=20, json_schema_extra=BESIDE)
    """Equal slices of the distribution of training times; the validation error is also reported for each of them."""
    num_pictures: int = Field(ge=1, le=64, json_schema_extra=BESIDE)
    """Validation latents shown in the picture of one-step predictions."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.averages is not None:
            self.averages.check_result(self.training.num_steps)
        return self
