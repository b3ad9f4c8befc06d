import json

import pytest

from ldm.core import shards
from ldm.core.errors import IntegrityError
from ldm.core.shards import Shards
from ldm.text.model.captions import Captions


def write(directory, part, keys):
    parts = [{part: json.dumps({"captions": [f"{key} one", "two"], "claims": [None, None]}).encode()} for key in keys]
    shards.write(directory, zip(keys, parts, strict=True), 2)


def test_texts_stand_in_the_order_of_the_samples(tmp_path):
    write(tmp_path, "json", ["b", "a", "c"])
    captions = Captions(tmp_path)
    assert captions.texts == [["b one", "two"], ["a one", "two"], ["c one", "two"]]
    assert (len(captions), captions.keys, captions.sha256) == (3, ["b", "a", "c"], Shards(tmp_path).sha256)


@pytest.mark.parametrize(("keys", "first"), [(["b", "x", "c"], 1), (["b", "a"], 2), (["a", "b", "c"], 0)])
def test_images_with_other_keys_are_refused(tmp_path, keys, first):
    write(tmp_path / "captions", "json", ["b", "a", "c"])
    write(tmp_path / "same", "png", ["b", "a", "c"])
    write(tmp_path / "images", "png", keys)
    captions = Captions(tmp_path / "captions")
    captions.check_keys(Shards(tmp_path / "same"))
    with pytest.raises(IntegrityError, match=rf"other keys than .*images from sample {first} on"):
        captions.check_keys(Shards(tmp_path / "images"))
