"""What every text encoder offers: its token states condition the UNet."""

from collections.abc import Sequence
from typing import Literal, Protocol, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ldm.core import artifact

Layer = Literal["last", "penultimate"]


class TextModel(Protocol):
    """Captions to token states. Token ids [b, m] are an encoder's own affair: others only cut and move their rows."""

    @property
    def kind(self) -> artifact.Kind:
        """The kind of artefact that it is stored as."""
        ...

    @property
    def context_length(self) -> int:
        """The most tokens of a caption, special ones included."""
        ...

    @property
    def context_width(self) -> int:
        """Width of a token state."""
        ...

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        ...

    def to(self, device: torch.device) -> Self:
        """Itself, on this device."""
        ...

    def num_tokens(self, captions: Sequence[str]) -> Int[np.ndarray, " b"]:
        """Number of tokens of each caption before it is cut, special ones included."""
        ...

    def tokenise(self, captions: Sequence[str], num_tokens: int | None = None) -> Int[Tensor, "b m"]:
        """Token ids. A caption of more than `num_tokens` (None = `context_length`) is cut, and keeps special tokens."""
        ...

    def mask(self, ids: Int[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
        """True for the tokens of a caption, special ones included; False for padding."""
        ...

    def encode_text(
        self, ids: Int[Tensor, "b m"], layer: Layer, norm: bool
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b f"]]:
        """States of every token after the last or penultimate block, with or without the final layer norm, and pooled
        features of length 1."""
        ...
