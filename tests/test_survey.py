"""What the captions of a corpus are: counted once, each at the first shard that has it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from ldm.compute.state import Run
from ldm.core import shards
from ldm.precompute.cache import Lookup
from ldm.text.embedding.survey import Survey, survey
from ldm.text.model import clip
from ldm.text.model.captions import Captions
from tests.toy_training import accelerator, params

TEXTS = {
    "train": [["a cat", "a dog"], ["a cat"], ["two cats"], ["a dog", "a red dog"], ["a cat"]],
    "val": [["a cat"], ["a blue dog", "two cats"]],
    "unseen": [],
}


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, Captions]:
    """Shards of two samples."""
    for split, samples in TEXTS.items():
        parts = [(f"{i:03d}", {"json": json.dumps({"captions": own}).encode()}) for i, own in enumerate(samples)]
        shards.write(tmp_path / split, parts, 2)
    return {split: Captions(tmp_path / split) for split in TEXTS}


def look(splits: dict[str, Captions], root: Path) -> tuple[Survey, list[int]]:
    """The survey, and how many captions were tokenised at a time."""
    sizes: list[int] = []

    def num_tokens(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        return np.array([len(text.split()) + 2 for text in texts])

    run = Run(root / "runs", "embed_text", {"params.layer": "last"})
    with run.opened(accelerator(params())):
        model = cast(clip.Clip, SimpleNamespace(num_tokens=num_tokens))
        return survey(splits, model, accelerator(params()), run), sizes


def test_every_caption_is_in_the_piece_of_its_first_shard(splits: dict[str, Captions], tmp_path: Path) -> None:
    found, sizes = look(splits, tmp_path)
    assert sizes == [3, 3, 1, 3]
    assert found.words == ["a", "blue", "cat", "cats", "dog", "red", "two"]
    assert found.num_tokens[found.distinct].tolist() == [4, 4, 4, 5, 5]
    pieces = found.pieces(["train", "val", "unseen"])
    assert [piece.texts for piece in pieces] == [["a cat", "a dog"], ["two cats", "a red dog"], ["a blue dog"]]
    assert all(np.array_equal(piece.digests, Lookup.digests(piece.texts)) for piece in pieces)
    assert [piece.texts for piece in found.pieces(["val"])] == [["a cat", "a blue dog", "two cats"]]
    assert found.pieces(["unseen"]) == found.pieces([]) == []


def test_a_piece_is_named_by_its_captions_and_the_tokens_kept(splits: dict[str, Captions], tmp_path: Path) -> None:
    pieces = look(splits, tmp_path)[0].pieces(["train", "val"])
    keys = {piece.key(tokens) for piece in pieces for tokens in (8, 16)}
    assert len(keys) == 6
    again = look(splits, tmp_path / "other")[0].pieces(["train", "val"])
    assert [piece.key(8) for piece in again] == [piece.key(8) for piece in pieces]


def test_a_shard_that_was_looked_at_is_not_looked_at_again(splits: dict[str, Captions], tmp_path: Path) -> None:
    first, _ = look(splits, tmp_path)
    second, sizes = look(splits, tmp_path)
    assert sizes == [] and np.array_equal(first.digests, second.digests) and first.words == second.words
