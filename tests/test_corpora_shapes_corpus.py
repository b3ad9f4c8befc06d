"""The procedural corpus: what it holds, what it keeps out of training, and that it is a pure function of its params."""

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from ldm.core.shards import SPLITS, Split
from ldm.corpora import shapes, shapes_scenes
from ldm.corpora import shapes_vocabulary as vocabulary
from ldm.corpora.pairs import Pair
from ldm.corpora.params import ShapesParams
from tests.corpora import shapes_params

PARAMS: ShapesParams = shapes_params(num_train=400, num_val=200, num_held_out=200)
RESERVED: tuple[Split, ...] = ("unseen", "held_out")


def _image(pair: Pair) -> np.ndarray:
    return cast("Callable[[], np.ndarray]", pair.image)()


def test_vocabulary_has_the_promised_breadth() -> None:
    assert len(vocabulary.COLOURS) >= 8 and len(vocabulary.SHAPES) >= 6 and len(vocabulary.RADII) >= 2
    assert len(vocabulary.RELATIONS) >= 4 and len(vocabulary.BACKGROUNDS) >= 3
    for split in RESERVED:
        assert len(shapes_scenes.RESERVED_PAIRS[split]) == round(len(vocabulary.COLOURS) * len(vocabulary.SHAPES) / 10)
        assert len(shapes_scenes.RESERVED_TRIPLES[split]) == round(
            len(vocabulary.SHAPES) ** 2 * len(vocabulary.AXES) / 10
        )


def test_settings_are_chosen_on_other_compositions_than_those_of_the_last_look() -> None:
    for reserved in (shapes_scenes.RESERVED_PAIRS, shapes_scenes.RESERVED_TRIPLES):
        assert not reserved["unseen"] & reserved["held_out"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_is_on_its_side_of_the_reserved_compositions(split: Split) -> None:
    scenes = [shapes_scenes.scene_at(number, split, PARAMS) for number in range(400)]
    wanted = {split} if split in RESERVED else set[Split]()
    assert all(shapes_scenes.reserved_for(scene) == wanted for scene in scenes)


@pytest.mark.parametrize("split", RESERVED)
def test_both_kinds_of_composition_are_reserved_and_relations_have_no_second_name(split: Split) -> None:
    red_circle = shapes_scenes.Object("red", "circle", "small", 0.5, 0.25, 0.12, (215, 35, 35))
    for colour, shape in shapes_scenes.RESERVED_PAIRS[split]:
        alone = shapes_scenes.Object(
            colour, shape, "large", 0.5, 0.5, vocabulary.RADII["large"], vocabulary.COLOURS[colour]
        )
        assert split in shapes_scenes.reserved_for(shapes_scenes.Scene((alone,), "centre", "white", (245, 245, 245)))
    for first, axis, second in shapes_scenes.RESERVED_TRIPLES[split]:
        pair = tuple(shapes_scenes.Object("cyan", s, "small", 0.5, 0.5, 0.12, (0, 0, 0)) for s in (first, second))
        assert split in shapes_scenes.reserved_for(shapes_scenes.Scene(pair, axis, "white", (245, 245, 245)))
    assert not shapes_scenes.reserved_for(shapes_scenes.Scene((red_circle,), "top", "white", (245, 245, 245)))


def test_a_sample_depends_on_seed_split_and_number_alone() -> None:
    once, again = (shapes.pair_at(7, "train", PARAMS, 64) for _ in range(2))
    assert once.captions == again.captions and once.scene == again.scene
    np.testing.assert_array_equal(_image(once), _image(again))
    more = PARAMS.model_copy(update={"num_train": 10_000})
    assert shapes.pair_at(7, "train", more, 64).scene == once.scene
    assert shapes.pair_at(7, "val", PARAMS, 64).scene != once.scene
    other = PARAMS.model_copy(update={"seed": 1})
    assert shapes.pair_at(7, "train", other, 64).scene != once.scene


def test_twins_exchange_places_and_nothing_else() -> None:
    for number in range(0, 100, 2):
        scene, twin = (shapes_scenes.scene_at(n, "train", PARAMS) for n in (number, number + 1))
        looks = [[(o.colour, o.shape, o.size, o.rgb) for o in s.objects] for s in (scene, twin)]
        assert looks[0] == looks[1][::-1] and scene.background == twin.background
        if len(scene.objects) > 1:
            assert [(o.x, o.y) for o in scene.objects] == [(o.x, o.y) for o in twin.objects]


def test_half_or_more_of_the_captions_of_several_objects_tell_a_relation() -> None:
    pairs = [shapes.pair_at(number, "train", PARAMS, 64) for number in range(400)]
    claims = [cast("dict[str, Any]", claim) for pair in pairs for claim in pair.claims]
    several = [claim for claim in claims if claim["count"] > 1]
    told = Counter("relation" in claim for claim in several)
    assert told[True] / len(several) == pytest.approx(PARAMS.relation_caption_fraction, abs=0.06)
    others = [claim for claim in several if "relation" not in claim]
    placed = sum(all("place" in o for o in claim["objects"]) for claim in others)
    assert placed / len(others) == pytest.approx(0.8, abs=0.12), "the rest names the objects alone"


def test_a_claim_states_what_its_scene_holds() -> None:
    for number in range(200):
        pair = shapes.pair_at(number, "val", PARAMS, 64)
        scene = cast("dict[str, Any]", pair.scene)
        looks = {(o["colour"], o["shape"]) for o in scene["objects"]}
        for claim in cast("list[dict[str, Any]]", pair.claims):
            assert {(o["colour"], o["shape"]) for o in claim["objects"]} == looks
            assert claim.get("background", scene["background"]) == scene["background"]


def test_three_objects_stand_in_a_row_inside_the_image() -> None:
    params = PARAMS.model_copy(update={"object_count_weights": [0.0, 0.0, 1.0]})
    for number in range(50):
        scene = shapes_scenes.scene_at(number, "train", params)
        assert len(scene.objects) == 3
        along = [o.y if scene.arrangement == "vertical" else o.x for o in scene.objects]
        assert along == sorted(along)
        assert all(1.1 * o.radius < min(o.x, o.y, 1 - o.x, 1 - o.y) for o in scene.objects)


@pytest.mark.parametrize("size_px", [32, 64, 96])
def test_a_render_has_the_colours_of_its_scene(size_px: int) -> None:
    scene = shapes_scenes.scene_at(3, "train", PARAMS)
    image = shapes_scenes.render(scene, size_px)
    assert image.shape == (size_px, size_px, 3) and image.dtype == np.uint8
    assert tuple(image[0, 0]) == scene.background_rgb
    for o in scene.objects:
        assert tuple(image[int(o.y * size_px), int(o.x * size_px)]) == o.rgb
