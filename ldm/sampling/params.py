"""Section `sample`: how noise becomes an image, and of which prompts images are made."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ldm.core.config import BESIDE, Section, from_values
from ldm.core.params import Precision
from ldm.sampling.samplers import SamplerParams

GuidanceScale = Annotated[float, Field(ge=0, le=100)]
Time = Annotated[float, Field(ge=0, le=1)]


class SweepParams(Section):
    """Prompts of unseen validation compositions (or of validation, for a corpus that keeps none back) sampled at
    several guidance scales, to choose one."""

    guidance_scales: list[GuidanceScale] = Field(max_length=32)
    """The scales; an empty list = no sweep."""
    num_prompts: int = Field(ge=2, le=10**6)
    """Prompts per scale, the same for every scale and other ones than those of the samples (fewer if the split has
    fewer)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.guidance_scales)) != len(self.guidance_scales):
            raise ValueError(f"guidance_scales {self.guidance_scales} name one twice")
        return self


class DrawingParams(Section):
    """What makes one image, besides its prompt and the number of its noise; this, and no more, goes into its PNG."""

    sampler: SamplerParams
    """The rule of a step."""
    num_steps: int = Field(ge=1, le=1000)
    """Steps from noise to latent. The sampler says how often a step calls the network; guidance doubles that."""
    spacing: Literal["uniform", "log_snr"]
    """Steps even in time, or even in log-SNR."""
    time_shift: float = Field(gt=0, le=100)
    """More than 1 spends more steps on high noise: t becomes s t / (1 + (s - 1) t); 1 = none."""
    guidance_scale: GuidanceScale
    """Classifier-free guidance; 1 = none, 0 = the prompt is ignored."""
    guidance_interval: tuple[Time, Time]
    """Times between which guidance acts, low and high; [0, 1] = always."""
    precision: Precision
    """Precision of matrix products and convolutions of the UNet; the autoencoder decodes in fp32."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of the noise."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval [{low}, {high}] is empty; expected [low, high] with low <= high")
        return self

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """These with other values of some fields; a sampler may be a name alone. ConfigError: a name is unknown, or a
        value is illegal alone or beside the others; all of them are named."""
        named = {"sampler": {"kind": settings["sampler"]}} if isinstance(settings.get("sampler"), str) else {}
        settings = {**settings, **named}
        return from_values(type(self), self.model_dump() | settings, settings)


class SampleParams(Section):
    """Section `sample` of params.yaml; `ldm generate` takes from it what it is not told."""

    drawing: DrawingParams
    batch_size: int = Field(ge=1, le=2**16)
    """Images sampled at a time; a batch is the unit of work that processes share out."""
    num_prompts_held_out: int = Field(ge=0, le=10**6)
    """Prompts from the held-out split, or from validation for a corpus that holds nothing out (fewer if the split has
    fewer); 0 = none, so that settings are chosen without a look at them."""
    num_prompts_unseen: int = Field(ge=0, le=10**6)
    """Prompts of unseen validation compositions (fewer if there are fewer; none for a corpus that keeps none back)."""
    num_prompts_seen: int = Field(ge=2, le=10**6)
    """Prompts from `seen_split` (fewer if it has fewer)."""
    seen_split: Literal["train", "val"]
    """Where seen prompts come from: `val` where validation repeats what training showed in other combinations, `train`
    where every sample shows something of its own."""
    sweep: SweepParams
    """Guidance sweep."""
    num_samples_per_shard: int = Field(ge=1, le=10**6, json_schema_extra=BESIDE)
    """Images in a tar of the result."""
    num_grid_columns: int = Field(ge=1, le=32, json_schema_extra=BESIDE)
    """Images in a row of `grid.png`."""
    num_grid_rows: int = Field(ge=1, le=32, json_schema_extra=BESIDE)
    """Rows of seen prompts, and as many of held-out ones below them."""
