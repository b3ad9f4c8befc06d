"""What the captions of a corpus are: hashes, tokens and words, counted shard by shard and kept."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from ldm.compute.process import Accelerator
from ldm.compute.state import Run
from ldm.core import artifact
from ldm.precompute.cache import Lookup
from ldm.precompute.work import keep_each
from ldm.text.embedding.words import words_of
from ldm.text.model.captions import Captions
from ldm.text.model.encoder import TextModel


@dataclass(frozen=True)
class Piece:
    """Captions of one shard that no shard before it has: a unit of work, and a shard of the cache."""

    captions: Captions
    shard: int
    places: Int[np.ndarray, " p"]
    """Which of all captions of the shard, ascending."""
    digests: Int64[np.ndarray, "p 2"]

    @property
    def texts(self) -> list[str]:
        """The captions."""
        texts = _texts(self.captions, self.shard)
        return [texts[place] for place in self.places.tolist()]

    def key(self, context_tokens: int) -> str:
        """A name of its embeddings among those of one encoder."""
        return artifact.sha256_tensors({f"{context_tokens}": torch.from_numpy(self.digests)})


@dataclass(frozen=True)
class Survey:
    """All captions of a corpus, in the order of splits, shards and samples: 20 bytes each."""

    places: list[tuple[str, Captions, int]]
    """Split and number of every shard."""
    ends: Int64[np.ndarray, " s"]
    """Captions up to the end of each shard."""
    digests: Int64[np.ndarray, "c 2"]
    num_tokens: Int[np.ndarray, " c"]
    """Tokens before a caption is cut, start and end included."""
    words: list[str]
    keys: list[str]
    """Of the units of work that this was read from."""

    @property
    def distinct(self) -> Int64[np.ndarray, " d"]:
        """Numbers of the captions that no caption before them equals."""
        return _firsts(self.digests)

    def pieces(self, splits: Collection[str]) -> list[Piece]:
        """All distinct captions of some splits."""
        in_splits = np.array([split in splits for split, _, _ in self.places], dtype=bool)
        starts = np.concatenate([[0], self.ends[:-1]])
        numbers = np.flatnonzero(in_splits.repeat(self.ends - starts))
        firsts = numbers[_firsts(self.digests[numbers])]
        found: list[Piece] = []
        for (_, captions, shard), start, end in zip(self.places, starts, self.ends, strict=True):
            chosen = firsts[np.searchsorted(firsts, start) : np.searchsorted(firsts, end)]
            if len(chosen):
                found.append(Piece(captions, shard, chosen - start, self.digests[chosen]))
        return found


def survey(splits: Mapping[str, Captions], model: TextModel, accelerator: Accelerator, run: Run) -> Survey:
    """Look at all captions of a corpus. Each process looks at its share of the shards; a shard that `run` knows is not
    looked at again."""
    places = [(split, captions, n) for split, captions in splits.items() for n in range(captions.shards.num_shards)]
    keys = [f"captions-{captions.shards.shard_sha256[number]}" for _, captions, number in places]
    work = {key: (captions, number) for key, (_, captions, number) in zip(keys, places, strict=True)}

    def look(at: tuple[Captions, int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        captions, number = at
        texts = _texts(captions, number)
        columns = {"digests": Lookup.digests(texts), "num_tokens": model.num_tokens(texts).astype(np.int32)}
        return {name: torch.from_numpy(column) for name, column in columns.items()}, {"words": sorted(words_of(texts))}

    keep_each(run, work, look, "captions", "shard", accelerator)
    digests: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    num_tokens: list[np.ndarray] = [np.empty(0, np.int32)]
    words: set[str] = set()
    for key in keys:
        unit = run.unit(key)
        digests.append(unit.tensors["digests"].numpy().copy())
        num_tokens.append(unit.tensors["num_tokens"].numpy().copy())
        words |= set(unit.values["words"])
    ends = np.cumsum([len(part) for part in num_tokens[1:]], dtype=np.int64)
    return Survey(places, ends, np.concatenate(digests), np.concatenate(num_tokens), sorted(words), keys)


def _texts(captions: Captions, shard: int) -> list[str]:
    """All captions of a shard, in the order of its samples."""
    samples = captions.shards.shard_samples(shard)
    return [text for texts in captions.texts[samples.start : samples.stop] for text in texts]


def _firsts(digests: Int64[np.ndarray, "c 2"]) -> Int64[np.ndarray, " d"]:
    """Numbers of the rows that no row before them equals, ascending."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # equal rows stay in order
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (digests[order[1:]] != digests[order[:-1]]).any(1)
    return np.sort(order[is_first])
