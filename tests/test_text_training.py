"""Where a CLIP comes from, and images and captions of a split as its training and validation take them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ldm.core import shards
from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.images import encode_png
from ldm.text.model import clip
from ldm.text.model.params import ClipParams
from ldm.text.training import pairs as training
from ldm.text.training import sources
from ldm.text.training.params import TrainClipParams
from tests.toy_training import DEFAULTS
from tests.trained_data import CLIP

TEXTS = [["a"], ["b", "other"], ["a"], ["c"], ["d"], ["d"], ["e"]]


def write(folder: Path, texts: list[list[str]] = TEXTS) -> training.ImagesAndCaptions:
    pixels = [np.full((4, 4, 3), 10 * number, dtype=np.uint8) for number in range(len(TEXTS))]
    shards.write(folder / "images", [(f"{i:03d}", {"png": encode_png(p)}) for i, p in enumerate(pixels)], 3)
    told = [json.dumps({"captions": captions, "claims": [None] * len(captions)}).encode() for captions in texts]
    shards.write(folder / "captions", [(f"{i:03d}", {"json": text}) for i, text in enumerate(told)], 3)
    return training.ImagesAndCaptions(folder / "images", folder / "captions")


def test_images_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    pixels = write(tmp_path).pixels([4, 1], 16)
    assert pixels.shape == (2, 3, 4, 4) and torch.equal(pixels[:, 0, 0, 0], torch.tensor([40, 10], dtype=torch.uint8))


def test_distinct_pairs_have_one_image_for_each_first_caption(tmp_path: Path) -> None:
    split = write(tmp_path)
    assert split.distinct(10) == ([0, 1, 3, 4, 6], ["a", "b", "c", "d", "e"])
    assert split.distinct(2) == ([0, 1], ["a", "b"])


def test_twins_are_neighbours_with_other_captions(tmp_path: Path) -> None:
    split = write(tmp_path)
    assert split.twins(10) == ([0, 1, 2, 3], ["a", "b", "a", "c"]), "samples 4 and 5 have one caption, 6 has no twin"
    assert split.twins(3) == ([0, 1], ["a", "b"])


def test_images_and_captions_of_other_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="other keys"):
        write(tmp_path, TEXTS[:-1])


REST: dict[str, Any] = {"text_encoder": {"kind": "clip"}, "num_validation_pairs": 2}


def obtained(**source: Any) -> tuple[clip.Clip, Any]:
    """What a source gives that trains nothing: it sees no pairs and has no run."""
    params = TrainClipParams.model_validate({"source": source, **REST})
    return sources.obtain(params, None, None, SimpleNamespace(device=torch.device("cpu")), None)


def test_a_model_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    model = clip.build(ClipParams.model_validate(CLIP), 0)
    model.save(tmp_path, {}, {})
    found, history = obtained(kind="folder", path=str(tmp_path), quick_gelu=False)
    assert history is None and not any(weight.requires_grad for weight in found.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True))


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({"kind": "open_clip", "architecture": "ViT-L-14", "tag": "nobody", "quick_gelu": None}, "tag: nobody"),
        ({"kind": "file", "path": "none.pt", "architecture": "ViT-L-14", "quick_gelu": False}, "path: no file none.pt"),
        ({"kind": "folder", "path": "none", "quick_gelu": False}, "path: no folder none"),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else "",
)
def test_a_model_that_is_not_there_is_refused_under_its_key(source: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"params.yaml: train_clip.source.{key}"):
        obtained(**source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_accumulation_steps": 2}, "num_accumulation_steps must be 1"),
        ({"batch_size": 5}, "batch_size 5 must be even with twins_together"),
    ],
)
def test_contradictions_of_a_training_are_refused(changes: dict[str, Any], message: str) -> None:
    training = DEFAULTS | {"batch_size": 4, "num_accumulation_steps": 1}
    source = {"kind": "train", "network": CLIP, "training": training, "twins_together": True}
    TrainClipParams.model_validate({"source": source, **REST})
    with pytest.raises(ValueError, match=message):
        source["training"] = training | changes
        TrainClipParams.model_validate({"source": source, **REST})
