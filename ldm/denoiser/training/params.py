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
    and the number of tokens); `autoencoder`; `latent_scale` (compared to six digits: without it here, latents are
    scaled as for that denoiser, if it is one of this project). Listing a trait that does not differ has no effect."""


class LoraParams(Section):
    """Low-rank adaptation (Hu et al. 2021): the weights that the training starts from stay as they are, and it learns
    what is added to some of them, alpha / rank times a product of two thin matrices."""

    rank: int = Field(ge=1, le=1024)
    """Columns of the thin matrices: more can learn more, and make a larger file. 4 to 16 is usual."""
    alpha: float = Field(gt=0, le=1e4)
    """Scale of what is added, divided by the rank: alpha equal to the rank is usual."""
    targets: Annotated[list[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]], Field(min_length=1)]
    """Which linear layers and convolutions it is added to, by their names or ends of them: to_q, to_k, to_v and
    to_out.0 are those of attention, ff.net.0.proj and ff.net.2 the layers after it."""


class MirroringParams(Section):
    """Half of the training images are seen mirrored, chosen anew in every epoch."""

    unless: list[Annotated[str, Field(pattern=r"^\S(.*\S)?$")]]
    """Words such as left and right: an image is never mirrored while its caption has one of them, in any case of its
    letters. In scripts with capitals only whole words count."""


class TrainUNetParams(Section):
    """Section `train_unet` of params.yaml."""

    network: NetworkParams
    diffusion: DiffusionParams
    latents: Literal["sample", "mean"]
    """What of the autoencoder's posterior it learns to draw: a new sample in every step, as Stable Diffusion does, or
    its mean. A sample holds noise that no network can predict, and means do not; with a weak KL divergence both are
    nearly the same."""
    training: TrainingParams
    averages: AveragesParams | None
    """More averages of the weights, of which one of any length can be made; null = only the one of `ema_decay`, which
    then is the result."""
    mirroring: MirroringParams | None
    """Mirrored images, which `encode_latents.mirrored` must have encoded; null = none. Writing in images is mirrored
    too."""
    init_from: InitFromParams | None
    """A trained denoiser to start from; null = random weights."""
    lora: LoraParams | None
    """Low-rank adaptation of `init_from`, which also writes what it learned as an adapter; null = all weights learn."""
    num_validation_samples: int = Field(gt=0, json_schema_extra=BESIDE)
    """Latents of the validation split that the validation loss is measured on (fewer if the split has fewer)."""
    num_validation_buckets: int = Field(ge=1, le=20, json_schema_extra=BESIDE)
    """Equal slices of the distribution of training times; the validation error is also reported for each of them."""
    num_pictures: int = Field(ge=1, le=64, json_schema_extra=BESIDE)
    """Validation latents shown in the picture of one-step predictions, and drawn from noise during training."""
    num_picture_steps: int = Field(ge=1, le=1000, json_schema_extra=BESIDE)
    """Steps of DDIM by which a validation draws images for the captions of these latents."""
    picture_guidance_scale: float = Field(ge=1, le=100, json_schema_extra=BESIDE)
    """Scale of the classifier-free guidance of these images; 1 = none, as always without caption dropout."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.averages is not None:
            self.averages.check_result(self.training.num_steps)
        if self.lora is not None and self.init_from is None:
            raise ValueError("lora adapts a trained denoiser, and init_from is null; name one there, or set lora: null")
        if self.lora is not None and self.averages is not None:
            raise ValueError("averages keep whole networks, and lora trains none; set one of them to null")
        return self
