"""Text embeddings of a corpus: rows that a run has kept, and the artefact that stage `embed_text` wrote."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm.compute.state import Run
from ldm.core import artifact
from ldm.core.errors import IntegrityError
from ldm.precompute.cache import Cache

KIND = artifact.Kind("embeddings")
CAPTIONS = "captions.json"
NULL = "null.safetensors"


class KeptRows:
    """Rows that a run has kept, by caption: from this run, and from earlier ones with the same encoder and
    settings."""

    def __init__(self, run: Run) -> None:
        self._units: dict[str, dict[str, Tensor]] = {}
        self._places: dict[str, tuple[str, int]] = {}
        for key in run.kept_keys():
            if (unit := run.kept(key)) is not None:
                self._units[key] = unit.tensors
                self._places |= {caption: (key, row) for row, caption in enumerate(unit.values["captions"])}

    def __contains__(self, caption: str) -> bool:
        return caption in self._places

    def gather(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Every tensor, with one row per caption."""
        places = [self._places[caption] for caption in captions]
        names = next(iter(self._units.values())).keys()
        return {name: torch.stack([self._units[key][name][row] for key, row in places]) for name in names}

    def keys_of(self, captions: Sequence[str]) -> set[str]:
        """Keys of the units that hold these captions."""
        return {self._places[caption][0] for caption in captions}


class TextEmbeddings:
    """Embeddings of all captions of a corpus as `embed_text` stored them, and the null embedding for "no caption"."""

    def __init__(self, directory: Path) -> None:
        self._cache = Cache(directory, KIND)
        self.passport = self._cache.passport
        captions: list[str] = json.loads((directory / CAPTIONS).read_text(encoding="utf-8"))
        self._rows = {caption: row for row, caption in enumerate(captions)}
        null = artifact.open_tensors(directory / NULL)
        self.null_tokens: Float[Tensor, "n d"] = null["tokens"].float()
        self.null_pooled: Float[Tensor, " f"] = null["pooled"].float()

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def files(self) -> list[tuple[Path, str]]:
        """Every shard with its SHA-256."""
        return self._cache.files

    def __contains__(self, caption: str) -> bool:
        return caption in self._rows

    @property
    def captions(self) -> list[str]:
        """All captions, in the order of their rows."""
        return list(self._rows)

    def rows(self, captions: Sequence[str]) -> Int[np.ndarray, "b"]:
        """Row numbers of captions. IntegrityError: one of them was not embedded."""
        missing = next((caption for caption in captions if caption not in self._rows), None)
        if missing is not None:
            raise IntegrityError(
                str(self._cache.directory),
                f"no embedding of {missing!r}",
                "every caption of the corpus",
                "run `dvc repro embed_text`",
            )
        return np.array([self._rows[caption] for caption in captions], dtype=np.int64)

    def tokens(self, rows: Int[np.ndarray, "b"]) -> Float[Tensor, "b n d"]:
        """Token states of rows, in float32."""
        return self._cache.gather("tokens", rows).float()

    def pooled(self, rows: Int[np.ndarray, "b"]) -> Float[Tensor, "b f"]:
        """Pooled features of rows, in float32; their length is 1 up to the rounding of float16."""
        return self._cache.gather("pooled", rows).float()
