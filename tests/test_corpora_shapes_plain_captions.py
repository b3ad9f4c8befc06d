"""Plain captions: those of the default since its first run."""

import random
from collections import Counter

from ldm.core import config
from ldm.corpora import shapes_plain_captions
from ldm.corpora.params import PrepareParams, ShapesParams
from ldm.corpora.shapes import pair_at
from ldm.corpora.shapes_scenes import render, scene_at
from ldm.oracles.shapes import ORACLE
from tests.corpora import shapes_params
from tests.import_closure import ROOT


def test_plain_captions_are_those_of_the_default_since_its_first_run() -> None:
    default = config.read(PrepareParams, "prepare", ROOT / "recipes/default.yaml").corpus
    assert isinstance(default, ShapesParams) and default.sentence_forms == "plain"
    assert pair_at(0, "val", default, 64).captions == ["a big red star on the left", "on the left a large red star"]
    counts = Counter(len(pair_at(number, "train", default, 64).captions) for number in range(20))
    assert counts == {default.num_captions_per_image: 20}
    # Forms that training does not know stay in the split `reworded`.
    assert pair_at(0, "reworded", default, 64).captions == pair_at(0, "reworded", varied(default), 64).captions
    assert pair_at(0, "val", varied(default), 64).captions != pair_at(0, "val", default, 64).captions


def varied(params: ShapesParams) -> ShapesParams:
    return params.model_copy(update={"sentence_forms": "varied"})


def test_what_a_plain_caption_states_is_so() -> None:
    params = shapes_params(num_train=40, num_val=2, num_held_out=2)
    for number in range(40):
        scene = scene_at(number, "train", params)
        caption = shapes_plain_captions.caption(random.Random(number), scene, 0.6)
        told = ORACLE.compare(caption.claim, ORACLE.read(render(scene, 64)))
        assert told["scene"], caption
        assert all(each.colour in caption.text for each in scene.objects)
