"""Section `train_clip`: the text encoder, trained on the corpus or pretrained."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldm.core.config import BESIDE, Section
from ldm.text.model.params import ClipParams
from ldm.training.params import TrainingParams

Name = Annotated[str, Field(min_length=1)]


class TrainedClipParams(Section):
    """A CLIP that is trained on the corpus."""

    kind: Literal["train"]
    """Where the CLIP comes from."""
    network: ClipParams
    """The model to train."""
    training: TrainingParams
    """How to train it."""
    twins_together: bool
    """Whether samples 2i and 2i + 1 always share a batch; meant for corpora in which these two are twins: scenes that
    differ only by an exchange."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.training.num_accumulation_steps != 1:
            raise ValueError(
                "training.num_accumulation_steps must be 1: the contrastive loss compares all pairs of a batch"
            )
        if self.twins_together and self.training.batch_size % 2:
            raise ValueError(f"training.batch_size {self.training.batch_size} must be even with twins_together")
        return self


class UntrainedClipParams(Section):
    """A CLIP with random weights. Its token states tell captions apart well enough for classes, or say nothing, for
    images without captions; its image features are a random projection, in which distances mean little."""

    kind: Literal["untrained"]
    """Where the CLIP comes from."""
    network: ClipParams
    """The model."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of its weights."""


class OpenClipParams(Section):
    """A CLIP that open_clip knows by name; it is downloaded once."""

    kind: Literal["open_clip"]
    """Where the CLIP comes from."""
    architecture: Name
    """open_clip's name of the architecture (`ViT-L-14`)."""
    tag: Name
    """open_clip's name of the weights (`laion2b_s32b_b82k`)."""
    quick_gelu: bool | None
    """Whether it computes with QuickGELU, as OpenAI's models do; null = as the weights of this tag were trained. The
    other activation is refused."""


class ClipFileParams(Section):
    """A checkpoint file of a CLIP as open_clip saves it. It does not record how its images are prepared: they are as
    for OpenAI's models, with a warning if open_clip knows such weights that need others."""

    kind: Literal["file"]
    """Where the CLIP comes from."""
    path: Name
    """The file, below the folder `clip` of `paths.models`."""
    architecture: Name
    """open_clip's name of the architecture (`ViT-L-14`)."""
    quick_gelu: bool
    """Whether it was trained with QuickGELU, as OpenAI's models were; the weights do not record it."""


class ClipFolderParams(Section):
    """A folder of a CLIP with its configuration: it has an `open_clip_config.json`, or was written by this stage."""

    kind: Literal["folder"]
    """Where the CLIP comes from."""
    path: Name
    """The folder, below the folder `clip` of `paths.models`."""
    quick_gelu: bool
    """Whether it was trained with QuickGELU, as OpenAI's models were; must agree with the folder's configuration."""


class NoClipParams(Section):
    """No CLIP: another text encoder conditions the UNet, and the evaluation has no feature space of the run's own."""

    kind: Literal["none"]
    """Where the CLIP comes from."""


ClipSource = Annotated[
    TrainedClipParams | UntrainedClipParams | OpenClipParams | ClipFileParams | ClipFolderParams | NoClipParams,
    Field(discriminator="kind"),
]


class ClipTextParams(Section):
    """The text tower of the CLIP, as in Stable Diffusion."""

    kind: Literal["clip"]
    """Which text encoder conditions the UNet."""


class TransformersParams(Section):
    """A text encoder that the package transformers has saved: T5, CLIP, SigLIP or a decoder language model."""

    kind: Literal["transformers"]
    """Which text encoder conditions the UNet."""
    path: Name
    """The folder with its config.json and weights, below the folder `clip` of `paths.models`. Of a model that also
    reads images or writes text, only what makes token states is kept."""
    tokenizer: Name | None
    """The folder of its tokenizer, if that is another one, as in a folder of diffusers; null = the same."""


class TrainClipParams(Section):
    """Section `train_clip` of params.yaml."""

    source: ClipSource
    """Where the CLIP comes from."""
    text_encoder: Annotated[ClipTextParams | TransformersParams, Field(discriminator="kind", json_schema_extra=BESIDE)]
    """Which text encoder conditions the UNet. With another one than its own text tower, the CLIP is for the evaluation
    alone."""
    num_validation_pairs: int = Field(ge=2, le=65536, json_schema_extra=BESIDE)
    """Image-caption pairs with distinct captions for validation by retrieval (fewer if the split has fewer)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source.kind == "none" and self.text_encoder.kind == "clip":
            raise ValueError("source.kind none leaves no text encoder; set text_encoder.kind to transformers")
        return self
