"""The default corpus: procedural scenes of a few coloured shapes, with captions and the scene graph that made them.

The attributes a caption states travel with it as a *claim*, so that `ldm.oracles.shapes` can say exactly which of them
a generated image honours.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import cast

from ldm.core.shards import Split
from ldm.corpora import shapes_captions, shapes_plain_captions
from ldm.corpora.pairs import Pair
from ldm.corpora.params import ShapesParams
from ldm.corpora.shapes_captions import FORMS, REWORDED_FORMS, Caption
from ldm.corpora.shapes_scenes import Scene, render, scene_at


def pairs(params: ShapesParams, size_px: int) -> Iterator[Pair]:
    """Every sample of all splits, in order; images as functions that render, scene graphs as JSON-ready dicts."""
    counts: dict[Split, int] = {
        "train": params.num_train,
        "val": params.num_val,
        "reworded": params.num_reworded,
        "unseen": params.num_unseen,
        "held_out": params.num_held_out,
    }
    for split, count in counts.items():
        for number in range(count):
            yield pair_at(number, split, params, size_px)


def pair_at(number: int, split: Split, params: ShapesParams, size_px: int) -> Pair:
    """One sample, a pure function of (params, split, number): rendering can be spread over processes."""
    scene = scene_at(number, split, params)
    # A stream of its own: other captions leave the images as they are.
    rng = random.Random(f"{params.seed}/{split}/{number}/captions")
    drawn = [_caption(rng, scene, split, params) for _ in range(params.num_captions_per_image)]
    return Pair(
        key=f"{split}-{number:08d}",
        image=partial(render, scene, size_px),
        captions=[c.text for c in drawn],
        claims=[cast("dict[str, object] | None", c.claim) for c in drawn],
        scene=asdict(scene),
        split=split,
        source={"corpus": "shapes", "number": number},
    )


def _caption(rng: random.Random, scene: Scene, split: Split, params: ShapesParams) -> Caption:
    fraction = params.relation_caption_fraction
    if split == "reworded":
        return shapes_captions.caption(rng, scene, fraction, REWORDED_FORMS)
    if params.sentence_forms == "plain":
        return shapes_plain_captions.caption(rng, scene, fraction)
    return shapes_captions.caption(rng, scene, fraction, FORMS)
