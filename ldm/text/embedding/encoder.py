"""Texts to token states, for stage `embed_text`, and at inference for texts that it has not stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float16
from torch import Tensor

from ldm.text.model import clip


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP, and which of its token states a UNet attends to."""

    model: clip.Clip
    layer: clip.Layer
    norm: bool
    context_tokens: int
    device: torch.device

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> tuple[Float16[Tensor, "b n d"], Float16[Tensor, "b f"]]:
        """Token states and pooled features of one batch, on the CPU."""
        ids = self.model.tokenise(texts, self.context_tokens).to(self.device)
        states, pooled = self.model.encode_text(ids, self.layer, self.norm)
        return states[:, : self.context_tokens].half().cpu(), pooled.half().cpu()

    def in_batches(self, texts: Sequence[str], batch_size: int) -> dict[str, Tensor]:
        """`tokens` [b, n, d] and `pooled` [b, f] of any number of texts."""
        tokens: list[Tensor] = []
        pooled: list[Tensor] = []
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            # All batches have one size, so that the bits of a state do not depend on how many other captions are new.
            states, features = self([*part, *[""] * (batch_size - len(part))])
            tokens.append(states[: len(part)])
            pooled.append(features[: len(part)])
        return {"tokens": torch.cat(tokens), "pooled": torch.cat(pooled)}
