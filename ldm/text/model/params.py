"""Params of the networks of a CLIP that is trained from scratch."""

from typing import Self

from pydantic import Field, model_validator

from ldm.core.config import Section

MAX_TOKENS = 1024
"""The most tokens of a caption, however many an encoder reads."""


class VisionParams(Section):
    """The image tower: a vision transformer."""

    image_size_px: int = Field(ge=8, le=1024)
    """Side of the square to which images are resized."""
    patch_size_px: int = Field(ge=1, le=64)
    """Side of a patch; each patch becomes one token."""
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
    context_length: int = Field(ge=3, le=MAX_TOKENS)
    """Tokens per caption, start and end included; longer captions are cut."""
    num_merges: int | None = Field(ge=0, le=48894)
    """Byte-pair merges kept from open_clip's vocabulary, most frequent first (vocabulary = 514 + merges); null = all of
    them (49,408 tokens)."""
    embedding_std: float = Field(gt=0, le=10)
    """Standard deviation of the token embeddings at the start; open_clip's is 0.02. A short training hardly moves words
    that do not help its loss, such as "above" and "below", so in the states that the UNet reads they stay as far apart
    as they start. With a large value, a state also stays close to its own token, since layers and positions start
    small and add little."""
    causal: bool
    """Whether a token sees only itself and the tokens before it, as in CLIP; false = every token sees the whole
    caption, but no padding."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ClipParams(Section):
    """A CLIP trained from scratch."""

    embed_dim: int = Field(ge=8, le=4096)
    """Width of the feature space that images and captions share."""
    vision: VisionParams
    text: TextParams
