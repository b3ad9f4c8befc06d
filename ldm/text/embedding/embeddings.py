"""Texts to what a UNet is conditioned on: looked up where stage `embed_text` has stored it, else computed by the text
encoder that made the stored ones.

`parts` of some texts are named as in `ldm.denoiser.model.condition.Condition`: `tokens` [b, n, d] and `pooled` [b, f]
in float32, and `mask` [b, n] if padding is masked: True for real tokens, start and end included.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ldm.compute.precision import autocast
from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.params import Precision
from ldm.precompute.cache import START, Cache, Lookup
from ldm.text.model import clip
from ldm.text.model.captions import Captions
from ldm.text.model.encoder import Layer, TextModel

INDEX = "captions.safetensors"
"""Columns of a `Lookup` of captions."""
WORDS = "words.json"
NULL = "null.safetensors"
_FORMER_CAPTIONS = "captions.json"
"""In format 1, instead of both: all captions, in the order of their rows."""
_CHECKED_AT_ONCE = 1000


def _with_padding(config: dict[str, Any]) -> dict[str, Any]:
    """Format 1 stored all captions, with the states of their padding."""
    rest = {name: value for name, value in config.items() if name != "num_captions_per_shard"}
    return {**rest, "padding": "attended", "train_split": {"kind": "stored"}}


KIND = artifact.Kind("embeddings", (_with_padding,))


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder, and which of its token states a UNet attends to."""

    model: TextModel
    layer: Layer
    norm: bool
    context_tokens: int
    is_masked: bool
    """Whether padding is masked; else the UNet attends to its states."""
    device: torch.device
    precision: Precision = "fp32"

    def ids(self, texts: Sequence[str]) -> Int[Tensor, "b m"]:
        """Token ids of texts, on the CPU. A text of more than `context_tokens` is cut."""
        return self.model.tokenise(texts, self.context_tokens)

    @torch.no_grad()
    def encode(self, ids: Int[Tensor, "b m"]) -> dict[str, Tensor]:
        """The parts of texts, on the device of the encoder, with states and features rounded to float16 as `embed_text`
        stores them, also where it has not."""
        with autocast(self.device, self.precision):
            states, pooled = self.model.encode_text(ids.to(self.device), self.layer, self.norm)
        parts = {"tokens": states[:, : self.context_tokens].half().float(), "pooled": pooled.half().float()}
        if not self.is_masked:
            return parts
        mask = self.mask(ids.to(self.device))
        return parts | {"tokens": parts["tokens"] * mask[..., None], "mask": mask}

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The parts of one batch of texts, on the CPU. ConfigError: float16 cannot hold the states."""
        parts = {name: part.cpu() for name, part in self.encode(self.ids(texts)).items()}
        if not parts["tokens"].isfinite().all():
            found, expected = f"{str(self.norm).lower()}, and float16 cannot hold the states", "smaller states"
            raise ConfigError(
                "params.yaml: embed_text.norm", found, expected, "set norm: true, or choose another layer"
            )
        return parts

    def mask(self, ids: Int[Tensor, "b m"]) -> Tensor:
        """True for tokens of a text, False for padding: [b, n]."""
        return self.model.mask(ids)[:, : self.context_tokens]

    def in_batches(self, texts: Sequence[str], batch_size: int) -> dict[str, Tensor]:
        """Rows of a cache for any number of texts: `pooled` [b, f] and `tokens` in float16. If padding is masked, the
        real tokens of all texts one after another [t, d], and `start`; else [b, n, d]."""
        batches: list[dict[str, Tensor]] = []
        for first in range(0, len(texts), batch_size):
            part = texts[first : first + batch_size]
            # All batches have one size, so that the bits of a state do not depend on how many other captions are new.
            parts = self([*part, *[""] * (batch_size - len(part))])
            batches.append({name: tensor[: len(part)] for name, tensor in parts.items()})
        whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        tokens, rows = whole["tokens"].half(), {"pooled": whole["pooled"].half()}
        if not self.is_masked:
            return rows | {"tokens": tokens}
        starts = torch.nn.functional.pad(whole["mask"].sum(1).cumsum(0), (1, 0))
        return rows | {"tokens": tokens[whole["mask"]], START: starts}


class TextContext:
    """What prompts need of the artefact of `embed_text`: how texts are encoded, the parts of "", which means no
    caption, and which words captions have. The captions themselves need not be there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._cache = Cache(directory, KIND)
        self.passport = self._cache.passport
        null = artifact.open_tensors(self._cache.file(NULL))
        self.is_masked = self.passport.config.get("padding") == "masked"
        self.null: dict[str, Tensor] = {
            name: part[None] if name == "mask" else part[None].float() for name, part in null.items()
        }
        """The parts of "", in one row."""
        names = _FORMER_CAPTIONS if self.passport.format_version == 1 else WORDS
        self.texts: list[str] | None = self._list(names) if (directory / names).exists() else None
        """Texts that have all words of the corpus, of one word each but in format 1; None = they did not travel."""

    def _list(self, name: str) -> list[str]:
        return json.loads(self._cache.file(name).read_text(encoding="utf-8"))

    @property
    def num_tokens(self) -> int:
        """Tokens of a text, padding included."""
        return self.null["tokens"].shape[1]

    def encoder(
        self, model: TextModel, passport: artifact.Passport, device: torch.device, precision: Precision = "fp32"
    ) -> TextEncoder:
        """The encoder that made these embeddings. IntegrityError: it was another one than the one given."""
        artifact.check_input(self.directory, self.passport, passport.kind, clip.identity(passport))
        facts = self.passport.facts
        states = facts["layer"], facts["norm"], facts["context_tokens"], self.is_masked
        return TextEncoder(model.to(device), *states, device, precision)

    def copy(self, directory: Path, with_words: bool) -> None:
        """Copy it without captions into a new folder, for `TextContext`. IntegrityError: a file is missing or
        damaged."""
        has_words = with_words and self.passport.format_version > 1
        self._cache.copy(directory, [NULL, *([WORDS] if has_words else [])])


class TextEmbeddings(TextContext):
    """Embeddings of the captions of a corpus as `embed_text` stored them, and those of "", which means no caption."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        # Format 1 had no columns; they follow from the captions.
        is_former = self.passport.format_version == 1
        self.texts = self._list(_FORMER_CAPTIONS if is_former else WORDS)
        columns = Lookup.columns(Lookup.digests(self.texts)) if is_former else self._columns()
        self._lookup = Lookup(columns)

    def _columns(self) -> dict[str, Tensor]:
        return artifact.open_tensors(self._cache.file(INDEX))

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def files(self) -> list[tuple[Path, str]]:
        """As of `Cache`."""
        return self._cache.files

    def __contains__(self, caption: str) -> bool:
        return bool(self._lookup.rows([caption])[0] >= 0)

    @property
    def is_online(self) -> bool:
        """Whether captions of the split `train` are encoded in the training step; none of them need be here."""
        return self.passport.config["train_split"]["kind"] == "online"

    def rows(self, captions: Sequence[str]) -> Int[np.ndarray, "b"]:
        """Row numbers of captions. IntegrityError: one of them was not embedded."""
        rows = self._lookup.rows(captions)
        if (missing := np.flatnonzero(rows < 0)).size:
            found, expected = f"no embedding of {captions[missing[0]]!r}", "every caption of the corpus"
            raise IntegrityError(str(self.directory), found, expected, "run `dvc repro embed_text`")
        return rows

    def parts(self, rows: Int[np.ndarray, "b"], *, with_pooled: bool = True) -> dict[str, Tensor]:
        """The parts of stored captions. Features have length 1 up to the rounding of float16."""
        stored = self.stored(rows, with_pooled=with_pooled)
        return {name: part if name == "mask" else part.float() for name, part in stored.items()}

    def stored(self, rows: Int[np.ndarray, "b"], *, with_pooled: bool = True) -> dict[str, Tensor]:
        """The same in float16, as they are stored."""
        parts: dict[str, Tensor] = {}
        if self.is_masked:
            parts["tokens"], parts["mask"] = self._cache.gather_padded("tokens", rows, self.num_tokens)
        else:
            parts["tokens"] = self._cache.gather("tokens", rows)
        return parts | ({"pooled": self._cache.gather("pooled", rows)} if with_pooled else {})

    def check_holds(self, split: str, captions: Captions) -> None:
        """IntegrityError unless all captions of a split are here."""
        if self.passport.inputs.get(f"captions_{split}") == captions.sha256:
            return
        # Others than it was made of; those of a stage that DVC has frozen may still be here.
        for first in range(0, len(captions), _CHECKED_AT_ONCE):
            self.rows([text for texts in captions.texts[first : first + _CHECKED_AT_ONCE] for text in texts])
