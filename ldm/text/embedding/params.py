"""Section `embed_text`: which states of the text encoder the UNet attends to, and how they are computed."""

from typing import Literal

from pydantic import Field

from ldm.core.config import BESIDE, Section


class EmbedTextParams(Section):
    """Section `embed_text` of params.yaml."""

    layer: Literal["last", "penultimate"]
    """Block of the text encoder whose states are used: last as in Stable Diffusion 1, penultimate as in 2."""
    norm: bool
    """Whether the encoder's final layer norm is applied to these states, as both versions of Stable Diffusion do."""
    context_tokens: int | None = Field(ge=3, le=1024)
    """Tokens per caption, start and end included; longer captions are cut. null = those of the longest caption, rounded
    up to a multiple of 8. Models compatible with Stable Diffusion need 77."""
    batch_size: int = Field(gt=0, le=2**16)
    """Captions per batch of the encoder."""
    num_captions_per_shard: int = Field(gt=0, le=2**20, json_schema_extra=BESIDE)
    """Captions per file of the cache; a file is also the unit of work that is shared among processes."""
