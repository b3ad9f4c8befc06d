"""Section `embed_text`: which states of the text encoder the UNet attends to, and how they are computed."""

from typing import Literal

from pydantic import Field

from ldm.core.config import BESIDE, Section


class EmbedTextParams(Section):
    """Section `embed_text` of params.yaml."""

    layer: Literal["last", "penultimate"]
    """Block of the text encoder whose states are taken: last as in Stable Diffusion 1, penultimate as in 2."""
    norm: bool
    """Whether the encoder's final layer norm is applied to them (both versions of Stable Diffusion do)."""
    context_tokens: int | None = Field(ge=3, le=1024)
    """Tokens kept of every caption, start and end included; longer ones are cut. null = the longest caption, rounded up
    to a multiple of 8; 77 for models compatible with Stable Diffusion."""
    batch_size: int = Field(gt=0, le=2**16)
    """Captions encoded at a time."""
    num_captions_per_shard: int = Field(gt=0, le=2**20, json_schema_extra=BESIDE)
    """Captions in a file of the cache, which is also the unit of work that processes share out."""
