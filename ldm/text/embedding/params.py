"""Section `embed_text`: which states of the text encoder the UNet attends to, and where they are computed."""

from typing import Annotated, Literal

from pydantic import Field

from ldm.core.config import Section
from ldm.core.params import Precision
from ldm.text.model.params import MAX_TOKENS


class StoredParams(Section):
    """Captions are encoded once, and their states are read in the training."""

    kind: Literal["stored"]
    """Two bytes a number: 158 kB for each caption of 77 tokens and 1024 numbers."""


class OnlineParams(Section):
    """Captions are encoded anew in each training step, by the frozen encoder. Nothing is stored, and each process holds
    the encoder."""

    kind: Literal["online"]
    """Losses equal those of `stored` up to rounding, if the precision is fp32."""
    precision: Precision
    """Number type of the encoder's matrix products. bf16 is several times faster on a GPU."""


class EmbedTextParams(Section):
    """Section `embed_text` of params.yaml."""

    layer: Literal["last", "penultimate"]
    """Block of the text encoder whose states are used: last for Stable Diffusion 1, T5 and every text encoder of a
    folder of diffusers, where that of Stable Diffusion 2 has lost its last block already; penultimate for the whole
    CLIP of 2, as open_clip has it."""
    norm: bool
    """Whether the encoder's final layer norm is applied to these states, as both versions of Stable Diffusion do."""
    context_tokens: int | None = Field(ge=3, le=MAX_TOKENS)
    """Tokens per caption, start and end included; longer captions are cut. null = those of the longest caption, rounded
    up to a multiple of 8. Models compatible with Stable Diffusion need 77."""
    padding: Literal["attended", "masked"]
    """Whether the UNet attends to the states after the end token, as Stable Diffusion does, or not. masked stores those
    of real tokens only."""
    train_split: Annotated[StoredParams | OnlineParams, Field(discriminator="kind")]
    """What becomes of captions that only the split `train` has. All others are stored."""
    batch_size: int = Field(gt=0, le=2**16)
    """Captions per batch of the encoder in this stage."""
