"""Images and captions of a split as CLIP's training and validation take them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.core import shards
from ldm.core.errors import IntegrityError
from ldm.core.images import encode_png
from ldm.text.training import pairs as training

TEXTS = [["a"], ["b", "other"], ["a"], ["c"], ["d"], ["d"], ["e"]]


def write(folder: Path, texts: list[list[str]] = TEXTS) -> training.ImagesAndCaptions:
    pixels = [np.full((4, 4, 3), 10 * number, dtype=np.uint8) for number in range(len(TEXTS))]
    shards.write(folder / "images", [(f"{i:03d}", {"png": encode_png(p)}) for i, p in enumerate(pixels)], 3)
    told = [json.dumps({"captions": captions, "claims": [None] * len(captions)}).encode() for captions in texts]
    shards.write(folder / "captions", [(f"{i:03d}", {"json": text}) for i, text in enumerate(told)], 3)
    return training.ImagesAndCaptions(folder / "images", folder / "captions")


def test_images_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    pixels = write(tmp_path).pixels([4, 1])
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
