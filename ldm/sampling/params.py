"""Section `sample`: how noise becomes an image, and which prompts are sampled."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ldm.core.config import BESIDE, Section, from_values
from ldm.core.params import AskedPrecision
from ldm.sampling.grids import Spacing
from ldm.sampling.guidance.params import AutoguidanceParams, ClassifierParams, GuidanceParams
from ldm.sampling.samplers import SamplerParams

MAX_CHARACTERS = 10**5
"""Limit of one prompt, thousands of times what a text encoder reads: its PNG carries it."""
Prompt = Annotated[str, Field(max_length=MAX_CHARACTERS)]
GuidanceScale = Annotated[float, Field(ge=0, le=100)]
Time = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=4096)]


class SweepParams(Section):
    """Sampling at several guidance scales, to choose one of them. Prompts are those of unseen validation compositions,
    or of validation for a corpus that keeps none back."""

    guidance_scales: list[GuidanceScale] = Field(max_length=32)
    """The guidance scales; an empty list = no sweep."""
    num_prompts: int = Field(ge=2, le=10**6)
    """Prompts per scale: the same for every scale, and none that the samples use (fewer if the split has fewer)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({f"{scale:g}" for scale in self.guidance_scales}) != len(self.guidance_scales):  # names of sets
            raise ValueError(f"guidance_scales {self.guidance_scales} name one twice, to six digits")
        return self


class DrawingParams(Section):
    """Settings of one image, besides its prompt and the number of its noise; exactly these are recorded in its PNG."""

    sampler: SamplerParams
    """The sampler, which computes each step."""
    num_steps: int = Field(ge=1, le=1000)
    """Steps from noise to latent. The sampler says how often a step calls the network; guidance doubles that."""
    spacing: Spacing
    """How steps are spread over time: `uniform`, `trailing` (at whole steps of the training table), `leading` (the same
    from below: only 1000 steps ask at the noisiest time), `quadratic`, `log_snr`, `karras` (`ldm.sampling.grids`)."""
    time_shift: float = Field(gt=0, le=100)
    """Shift s of times, t -> s t / (1 + (s - 1) t); 1 = none; above 1, more steps are spent on high noise."""
    guidance: GuidanceParams
    """What leads the image towards its prompt: `classifier_free` or `ho_salimans`, two forms of one rule,
    `autoguidance`, or `classifier`."""
    guidance_scale: GuidanceScale
    """Scale of guidance, which each kind defines. For `classifier_free`: 1 = no guidance, 0 = the prompt is ignored."""
    guidance_interval: tuple[Time, Time]
    """Times [low, high] between which guidance is applied; [0, 1] = always."""
    guidance_rescale: float = Field(ge=0, le=1)
    """How far guided z0_hat are scaled back to the standard deviation of unguided ones (phi of Lin et al. 2023);
    0 = not at all, 1 = all the way."""
    negative_prompt: Prompt
    """What classifier-free guidance leads away from; "" = no prompt. In params.yaml: a caption of the corpus, since
    stage `sample` reads stored embeddings."""
    dynamic_threshold: float | None = Field(ge=0, le=1)
    """Quantile of the absolute values of a z0_hat that becomes their limit 1 (Saharia et al. 2022), for models whose
    latents are pixels; 0 = values are clipped to -1..1; null = no limit."""
    size_px: tuple[Side, Side] | None
    """Height and width of the image; null = in stage `sample` those of the prompt's own image, else those of the square
    images of training. Other sizes than the buckets of training are possible, and worse."""
    precision: AskedPrecision
    """Precision of matrix products and convolutions in the UNet; the autoencoder decodes in fp32. auto = bf16 on a GPU
    that has it, and the faster of both on a CPU, by a measurement; an image records what it came to."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of the noise."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval [{low}, {high}] is empty; expected [low, high] with low <= high")
        if self.negative_prompt and isinstance(self.guidance, AutoguidanceParams | ClassifierParams):
            expected = "classifier_free or ho_salimans, which lead away from it"
            raise ValueError(f"a negative_prompt with guidance {self.guidance.kind}; expected {expected}")
        return self

    @property
    def needs_null(self) -> bool:
        """Whether the network is asked without a prompt, which it must have been trained for."""
        match self.guidance:
            case AutoguidanceParams():
                return False
            case ClassifierParams():
                return True
            case _:
                return self.guidance_scale != self.guidance.neutral and not self.negative_prompt

    @property
    def unguided(self) -> str:
        """How to ask for the prompt alone, in words."""
        has_prompt = not isinstance(self.guidance, ClassifierParams)
        return f"{self.guidance.neutral:g}" if has_prompt else "1 with guidance classifier_free"

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """A copy with other values of some fields; sampler and guidance may be given by their names alone.

        ConfigError: a name is unknown, or a value is illegal by itself or together with the others; lists all of them.
        """
        unions = {name: settings.get(name) for name in ("sampler", "guidance")}
        named = {name: {"kind": kind} for name, kind in unions.items() if isinstance(kind, str)}
        settings = {**settings, **named}
        return from_values(type(self), self.model_dump() | settings, settings)


class SampleParams(Section):
    """Section `sample` of params.yaml; `ldm generate` uses it for all options that are not given."""

    drawing: DrawingParams
    batch_size: int = Field(ge=1, le=2**16)
    """Images per batch; batches are shared among processes."""
    num_prompts_held_out: int = Field(ge=0, le=10**6)
    """Prompts from the held-out split, or from validation for a corpus that holds nothing out (fewer if the split has
    fewer). 0 = none, so that settings can be chosen without looking at them."""
    num_prompts_unseen: int = Field(ge=0, le=10**6)
    """Prompts of unseen validation compositions (fewer if there are fewer; none for a corpus that keeps none back)."""
    num_prompts_reworded: int = Field(ge=0, le=10**6)
    """Prompts of known compositions in sentence forms that training has not shown (fewer if there are fewer; none for a
    corpus that keeps none back)."""
    num_prompts_seen: int = Field(ge=2, le=10**6)
    """Prompts from `seen_split`; fewer if it has fewer, or if they are more than half of the training samples."""
    seen_split: Literal["train", "val"]
    """Split of seen prompts: `val` for corpora in which validation repeats what training showed in other combinations,
    `train` for corpora in which every sample shows something new."""
    sweep: SweepParams
    """The guidance sweep."""
    num_samples_per_shard: int = Field(ge=1, le=10**6, json_schema_extra=BESIDE)
    """Images per tar of the result."""
    num_grid_columns: int = Field(ge=1, le=32, json_schema_extra=BESIDE)
    """Images per row of `grid.png`."""
    num_grid_rows: int = Field(ge=1, le=32, json_schema_extra=BESIDE)
    """Rows of seen prompts in `grid.png`, and as many rows of held-out prompts below them."""
