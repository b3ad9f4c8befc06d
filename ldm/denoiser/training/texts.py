"""Where the conditions of captions come from in a training: from storage, or from the encoder in the training step.

Dropped captions become "", the text of no caption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ldm.denoiser.model.condition import Condition
from ldm.denoiser.model.diffusion import DenoisingObjective
from ldm.denoiser.model.params import DiffusionParams
from ldm.text.embedding.embeddings import TextEmbeddings, TextEncoder

IDS = "ids"
_AT_ONCE = 64


class Texts(Protocol):
    """What a training asks about captions."""

    def parts(self, texts: Sequence[str], dropped: Bool[Tensor, " b"]) -> dict[str, Tensor]:
        """What a training batch holds of these captions, on the CPU: parts of a `Condition`, or token ids that the
        objective makes it of."""
        ...

    def condition(self, texts: Sequence[str]) -> Condition:
        """The condition of captions, on the CPU."""
        ...

    def objective(self, network: nn.Module, params: DiffusionParams) -> DenoisingObjective:
        """The objective of such batches."""
        ...


class StoredTexts:
    """Conditions as `embed_text` has stored them. They hold pooled features only if a network takes them, since reading
    those takes a third of the time that reading the tokens takes."""

    def __init__(self, embeddings: TextEmbeddings, takes_pooled: bool) -> None:
        self._embeddings, self._takes_pooled = embeddings, takes_pooled
        taken = (name for name in embeddings.null if name != "pooled" or takes_pooled)
        null = {name: embeddings.null[name] for name in taken}
        self._null = Condition(**{name: part if name == "mask" else part.half() for name, part in null.items()})

    def parts(self, texts: Sequence[str], dropped: Bool[Tensor, " b"]) -> dict[str, Tensor]:
        """Parts of the condition in float16, as they are stored: half as much to copy to a device."""
        stored = self._embeddings.stored(self._embeddings.rows(texts), with_pooled=self._takes_pooled)
        return Condition(**stored).with_rows(dropped, self._null).parts

    def condition(self, texts: Sequence[str]) -> Condition:
        """IntegrityError: a caption was not embedded."""
        rows = self._embeddings.rows(texts)
        return Condition(**self._embeddings.parts(rows, with_pooled=self._takes_pooled))

    def objective(self, network: nn.Module, params: DiffusionParams) -> DenoisingObjective:
        """The plain objective."""
        return DenoisingObjective(network, params)


@dataclass(frozen=True)
class OnlineTexts:
    """Conditions as the frozen encoder makes them on its device."""

    encoder: TextEncoder
    takes_pooled: bool

    def parts(self, texts: Sequence[str], dropped: Bool[Tensor, " b"]) -> dict[str, Tensor]:
        """Token ids."""
        kept = ["" if is_dropped else text for text, is_dropped in zip(texts, dropped.tolist(), strict=True)]
        return {IDS: self.encoder.ids(kept)}

    def condition(self, texts: Sequence[str]) -> Condition:
        """Computed in batches of a fixed size."""
        batches = [self.encoded(self.encoder.ids(texts[i : i + _AT_ONCE])) for i in range(0, len(texts), _AT_ONCE)]
        return Condition(**{name: torch.cat([batch[name] for batch in batches]).cpu() for name in batches[0]})

    def objective(self, network: nn.Module, params: DiffusionParams) -> DenoisingObjective:
        """The objective with the encoder in front."""
        return _OnlineObjective(network, params, self)

    def encoded(self, ids: Tensor) -> dict[str, Tensor]:
        """Parts of the condition, on the device of the encoder."""
        parts = self.encoder.encode(ids)
        return {name: part for name, part in parts.items() if name != "pooled" or self.takes_pooled}


class _OnlineObjective(DenoisingObjective):
    """The encoder is no module of the objective: it is neither trained, averaged nor saved with it."""

    def __init__(self, network: nn.Module, params: DiffusionParams, texts: OnlineTexts) -> None:
        super().__init__(network, params)
        self._texts = texts

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As of the plain objective. batch: with `ids`, or with the parts of a condition."""
        return super().losses({**batch, **self._texts.encoded(batch[IDS])} if IDS in batch else batch)
