"""The oracle: right on real renders, also degraded ones, wrong on shuffled captions, and fooled by nothing obvious."""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
import pytest

from ldm.corpora import shapes, shapes_scenes
from ldm.corpora import shapes_vocabulary as vocabulary
from ldm.oracles import shapes as oracle
from studies import outlines as study
from tests.corpora import shapes_params

NUM_SAMPLES = 400
LENIENT = (*oracle.ATTRIBUTES, "scene")
PARAMS = shapes_params(num_train=1, num_val=NUM_SAMPLES, num_held_out=NUM_SAMPLES)
Picture = np.ndarray


@lru_cache(maxsize=1)
def _samples() -> list[tuple[dict[str, Any], Picture]]:
    pairs = [
        shapes.pair_at(n, split, PARAMS, 64) for split in ("val", "reworded", "held_out") for n in range(NUM_SAMPLES)
    ]
    return [(cast("dict[str, Any]", p.claims[0]), np.asarray(cast("Callable[[], Picture]", p.image)())) for p in pairs]


@lru_cache(maxsize=1)
def _readings() -> list[oracle.SceneReading]:
    return [oracle.read(image) for _, image in _samples()]


def _score(claim: dict[str, Any], image: Picture) -> dict[str, bool]:
    (score,) = oracle.check(image, [claim])
    return score


def test_real_renders_honour_their_captions() -> None:
    scores = [oracle.compare(claim, reading) for (claim, _), reading in zip(_samples(), _readings(), strict=True)]
    assert np.mean([score["scene"] for score in scores]) >= 0.995
    assert np.mean([score["scene_strict"] for score in scores if score["scene"]]) >= 0.999
    assert not any(score["scene_strict"] and not score["scene"] for score in scores)


@pytest.mark.parametrize("degrade", [study.jpeg, study.blurred])
def test_light_damage_changes_little(degrade: Callable[[Picture], Picture]) -> None:
    scores = [_score(claim, degrade(image)) for claim, image in _samples()[::2]]
    assert np.mean([score["scene"] for score in scores]) >= 0.995
    assert np.mean([score["scene_strict"] for score in scores]) >= 0.98


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("size_px", [64, 128])
def test_outlines_of_any_size_are_right(count: int, size_px: int) -> None:
    assert study.passed("as it is", "small", 40, count=count, size_px=size_px)["outline"] == 1


@pytest.mark.parametrize(
    ("deformation", "most"),
    [
        ("corners rounded by 30 % of the radius", 0.1),
        ("sides bent by +10 % of the radius", 0.7),
        ("sides bent by -10 % of the radius", 0.3),
        ("disc of 6 corners", 0.1),
        ("wobble of 10 % of the radius", 0.05),
        ("arms of a cross 1.3 times as wide", 0.1),
        ("turned by 10 degrees", 0.0),
    ],
)
def test_deformed_objects_that_overlap_enough_have_wrong_outlines(deformation: str, most: float) -> None:
    shares = [study.passed(deformation, size, 40) for size in vocabulary.RADII]
    assert max(share["outline"] for share in shares) <= most
    assert max(share["shape"] for share in shares) >= 0.7


def test_the_outline_must_be_that_of_the_shape_claimed() -> None:
    score = _score(CLAIM, _scene(shape="square"))
    assert not score["outline"] and not score["scene_strict"]


def test_deformed_scenes_are_drawn_like_others() -> None:
    scene = shapes_scenes.scene_at(0, "val", PARAMS)
    drawn = study.render(scene, 64, study.as_it_is, random.Random(0))
    assert np.array_equal(drawn, shapes_scenes.render(scene, 64))


def test_shuffled_captions_are_refused() -> None:
    samples = _samples()
    # An odd shift: neighbours are twins, which share all looks.
    scores = [oracle.compare(samples[(i + 7) % len(samples)][0], r)["scene"] for i, r in enumerate(_readings())]
    assert np.mean(scores) <= 0.01


def test_exchanged_places_fail_on_place_alone() -> None:
    samples = _samples()
    for i, reading in enumerate(_readings()):
        score = oracle.compare(samples[i ^ 1][0], reading)
        looks = {name: value for name, value in score.items() if name in ("count", "colour", "shape", "size")}
        assert all(looks.values())
        if "relation" in score:
            assert not score["relation"] and not score["scene"]


def _scene(**changes: str) -> Picture:
    look = {"colour": "red", "shape": "circle", "size": "large", "place": "top", "background": "white", **changes}
    x, y = vocabulary.ANCHORS[look["place"]]
    rgb = vocabulary.COLOURS[look["colour"]]
    o = shapes_scenes.Object(look["colour"], look["shape"], look["size"], x, y, vocabulary.RADII[look["size"]], rgb)
    return shapes_scenes.render(shapes_scenes.Scene((o,), look["place"], look["background"], (245, 245, 245)), 64)


CLAIM: dict[str, Any] = {
    "count": 1,
    "objects": [{"colour": "red", "shape": "circle", "size": "large", "place": "top"}],
    "background": "white",
}


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        *(("colour", name) for name in vocabulary.COLOURS if name != "red"),
        *(("shape", name) for name in vocabulary.SHAPES if name != "circle"),
        ("size", "small"),
        *(("place", name) for name in vocabulary.ANCHORS if name != "top"),
    ],
)
def test_one_wrong_attribute_fails_that_attribute_alone(attribute: str, value: str) -> None:
    score = _score(CLAIM, _scene(**{attribute: value}))
    assert [name for name in LENIENT if not score.get(name, True)] == [attribute, "scene"]


def test_a_right_picture_passes_and_an_empty_one_fails_everything_but_the_background() -> None:
    assert all(_score(CLAIM, _scene()).values())
    empty = np.full((64, 64, 3), 245, dtype=np.uint8)
    assert {name for name, honoured in _score(CLAIM, empty).items() if honoured} == {"background"}


def test_noise_holds_no_scene() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not _score(CLAIM, noise)["scene"]


def test_only_what_is_claimed_is_scored() -> None:
    claim = {"count": 1, "objects": [{"colour": "red", "shape": "circle"}]}
    stated = {"count", "colour", "shape", "scene"}
    assert set(_score(claim, _scene(size="small"))) == stated | set(oracle.STRICT)
    unshaped = {"count": 1, "objects": [{"colour": "red"}]}
    assert set(_score(unshaped, _scene())) == {"count", "colour", "scene", "scene_strict"}
