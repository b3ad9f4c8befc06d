"""Section `train_clip`: the text encoder, trained on the corpus or taken as it is."""

from typing import Self

from pydantic import Field, model_validator

from ldm.config import BESIDE, Section
from ldm.params.training import TrainingParams


class VisionParams(Section):
    """The image tower: a vision transformer."""

    image_size_px: int = Field(ge=8, le=1024)
    """Side of the square that images are resized to."""
    patch_size_px: int = Field(ge=1, le=64)
    """Side of a patch, which becomes one token."""
    width: int = Field(ge=8, le=4096)
    """Width of a token."""
    layers: int = Field(ge=1, le=64)
    """Transformer blocks."""
    head_width: int = Field(ge=4, le=256)
    """Channels per attention head."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.image_size_px % self.patch_size_px:
            raise ValueError(
                f"image_size_px {self.image_size_px} is not a multiple of patch_size_px {self.patch_size_px}"
            )
        if self.width % self.head_width:
            raise ValueError(f"width {self.width} is not a multiple of head_width {self.head_width}")
        return self


class TextParams(Section):
    """The text tower: a transformer over byte-pair tokens."""

    width: int = Field(ge=8, le=4096)
    """Width of a token."""
    heads: int = Field(ge=1, le=64)
    """Attention heads."""
    layers: int = Field(ge=1, le=64)
    """Transformer blocks."""
    context_length: int = Field(ge=3, le=1024)
    """Tokens per caption, start and end included; longer captions are cut."""
    num_merges: int | None = Field(ge=0, le=48894)
    """Byte-pair merges kept from open_clip's vocabulary, most frequent first (vocabulary = 514 + merges); null = all of
    them (49,408 tokens)."""
    embedding_std: float = Field(gt=0, le=10)
    """Spread of the token embeddings at the start; open_clip's own is 0.02. A short training hardly moves words that it
    has no use for, "above" and "below" among them: they stay as far apart in the states that the UNet reads as they
    start. A large value also keeps a token's state its own: layers and positions, which start small, add little."""
    causal: bool
    """Whether a token sees only the tokens before it, as in CLIP; false = every token sees the whole caption, but no
    padding."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ClipParams(Section):
    """A CLIP trained from scratch."""

    embed_dim: int = Field(ge=8, le=4096)
    """Width of the space that images and captions share."""
    vision: VisionParams
    text: TextParams


class TrainClipParams(Section):
    """Section `train_clip` of params.yaml."""

    pretrained: str | None = Field(min_length=1)
    """null = train `network` on the corpus; else an open_clip tag (`laion2b_s34b_b79k`), a checkpoint file
    in `clip` of `paths.models`, or there a folder with `open_clip_config.json` or one that an earlier run of this stage
    wrote. A path holds a `/`, a tag does not."""
    architecture: str | None = Field(min_length=1)
    """open_clip's name of the architecture (`ViT-L-14`) for a tag or a checkpoint file; null for a folder, which says
    it itself."""
    quick_gelu: bool | None
    """Whether the pretrained model was trained with QuickGELU, as OpenAI's were; a path must say it, null = what the
    architecture says."""
    network: ClipParams | None
    """The model to train; null with `pretrained`."""
    training: TrainingParams | None
    """How it is trained; null with `pretrained`."""
    twins_together: bool
    """Whether samples 2i and 2i + 1 always share a batch, where the corpus puts scenes that differ only by an exchange
    side by side."""
    num_validation_pairs: int = Field(ge=2, le=65536, json_schema_extra=BESIDE)
    """Image-caption pairs with distinct captions among which validation retrieves (fewer if the split has fewer)."""

    @property
    def pretrained_is_path(self) -> bool:
        """Whether `pretrained` names a file or folder, not a tag."""
        return self.pretrained is not None and "/" in self.pretrained

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrained is None:
            self._check_trained()
        else:
            self._check_pretrained()
        return self

    def _check_trained(self) -> None:
        if self.network is None or self.training is None:
            raise ValueError("pretrained is null, so network and training must be given")
        if self.architecture is not None or self.quick_gelu is not None:
            raise ValueError(
                "architecture and quick_gelu belong to a pretrained model; pretrained is null, so they must be null"
            )
        if self.training.num_accumulation_steps != 1:
            raise ValueError(
                "training.num_accumulation_steps must be 1: the contrastive loss compares all pairs of a batch"
            )
        if self.twins_together and self.training.batch_size % 2:
            raise ValueError(f"training.batch_size {self.training.batch_size} must be even with twins_together")

    def _check_pretrained(self) -> None:
        if self.network is not None or self.training is not None:
            raise ValueError("network and training must be null with pretrained: that model is used as it is")
        if self.pretrained_is_path and self.quick_gelu is None:
            raise ValueError(
                "quick_gelu must be true or false with a path: weights do not say with which they were trained"
            )
        if not self.pretrained_is_path and self.architecture is None:
            raise ValueError(f"architecture must name the open_clip architecture of the tag {self.pretrained!r}")
