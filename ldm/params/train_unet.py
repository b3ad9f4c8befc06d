"""Section `train_unet`: the denoiser, its forward process, its loss and its training."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ldm.config import BESIDE, Section
from ldm.params.networks import UNetParams
from ldm.params.training import TrainingParams
from ldm.schedules import Prediction, ScheduleName, alpha_sigma


class DiffusionParams(Section):
    """The forward process, what the network predicts, and how the loss weighs noise levels."""

    schedule: ScheduleName
    """Share of signal and noise over time; `zero_terminal_snr` is `scaled_linear` rescaled to end in pure noise."""
    prediction: Prediction
    """What the network puts out: the noise, the velocity alpha noise - sigma z0, the clean latent, or noise - z0."""
    loss_weighting: Literal["uniform", "min_snr"]
    """`uniform` weighs the error of the prediction equally at all times; `min_snr` caps the weight of easy times."""
    min_snr_gamma: float = Field(gt=0, le=1000)
    """Cap of the signal-to-noise ratio in `min_snr` (5 in the paper)."""
    time_sampling: Literal["uniform", "logit_normal"]
    """Distribution of training times."""
    logit_normal_mean: float = Field(ge=-5, le=5)
    """Mean of the time's logit in `logit_normal`; above 0 favours high noise."""
    logit_normal_std: float = Field(gt=0, le=5)
    """Standard deviation of the time's logit in `logit_normal`."""
    time_shift: float = Field(gt=0, le=100)
    """Shift s of times t -> s t / (1 + (s - 1) t); 1 is none, more favours high noise."""
    stratified_times: bool
    """One time from each of `batch_size` equal slices of the distribution, instead of independent ones."""
    caption_dropout: float = Field(ge=0, lt=1)
    """Probability that a caption is replaced by the null embedding; 0 rules out guidance."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prediction == "eps" and alpha_sigma(self.schedule, 1)[0] == 0:
            raise ValueError(
                f"prediction eps cannot be used with schedule {self.schedule}: it ends in pure noise, "
                "where the noise says nothing about the clean latent; use v, x0 or flow"
            )
        return self


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
