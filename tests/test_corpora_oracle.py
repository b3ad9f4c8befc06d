"""The oracle: right on real renders, also degraded ones, wrong on shuffled captions, and fooled by nothing obvious."""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ldm.corpora import oracle, shapes
from tests.corpora import shapes_params

NUM_SAMPLES = 400
PARAMS = shapes_params(num_train=1, num_val=NUM_SAMPLES, num_held_out=NUM_SAMPLES)
Picture = np.ndarray


@lru_cache(maxsize=1)
def _samples() -> list[tuple[dict[str, Any], Picture]]:
    pairs = [shapes.pair_at(n, split, PARAMS, 64) for split in ("val", "held_out") for n in range(NUM_SAMPLES)]
    return [(cast("dict[str, Any]", p.claims[0]), np.asarray(cast("Callable[[], Picture]", p.image)())) for p in pairs]


def _jpeg(image: Picture) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def _blurred(image: Picture) -> Picture:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.7)))


@pytest.mark.parametrize("degrade", [np.asarray, _jpeg, _blurred])
def test_real_renders_honour_their_captions(degrade: Callable[[Picture], Picture]) -> None:
    scores = [oracle.score(claim, degrade(image))["scene"] for claim, image in _samples()]
    assert np.mean(scores) >= 0.995


def test_shuffled_captions_are_refused() -> None:
    samples = _samples()
    # An odd shift: neighbours are twins, which share all looks.
    scores = [oracle.score(samples[(i + 7) % len(samples)][0], image)["scene"] for i, (_, image) in enumerate(samples)]
    assert np.mean(scores) <= 0.01


def test_exchanged_places_fail_on_place_alone() -> None:
    samples = _samples()
    for i, (_, image) in enumerate(samples):
        score = oracle.score(samples[i ^ 1][0], image)
        looks = {name: value for name, value in score.items() if name in ("count", "colour", "shape", "size")}
        assert all(looks.values())
        if "relation" in score:
            assert not score["relation"] and not score["scene"]


def _scene(**changes: str) -> Picture:
    look = {"colour": "red", "shape": "circle", "size": "large", "place": "top", "background": "white", **changes}
    x, y = shapes.ANCHORS[look["place"]]
    rgb = shapes.COLOURS[look["colour"]]
    o = shapes.Object(look["colour"], look["shape"], look["size"], x, y, shapes.RADII[look["size"]], rgb)
    return shapes.render(shapes.Scene((o,), look["place"], look["background"], (245, 245, 245)), 64)


CLAIM: dict[str, Any] = {
    "count": 1,
    "objects": [{"colour": "red", "shape": "circle", "size": "large", "place": "top"}],
    "background": "white",
}


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        *(("colour", name) for name in shapes.COLOURS if name != "red"),
        *(("shape", name) for name in shapes.SHAPES if name != "circle"),
        ("size", "small"),
        *(("place", name) for name in shapes.ANCHORS if name != "top"),
    ],
)
def test_one_wrong_attribute_fails_that_attribute_alone(attribute: str, value: str) -> None:
    score = oracle.score(CLAIM, _scene(**{attribute: value}))
    assert [name for name, honoured in score.items() if not honoured] == [attribute, "scene"]


def test_a_right_picture_passes_and_an_empty_one_fails_everything_but_the_background() -> None:
    assert all(oracle.score(CLAIM, _scene()).values())
    empty = np.full((64, 64, 3), 245, dtype=np.uint8)
    assert {name for name, honoured in oracle.score(CLAIM, empty).items() if honoured} == {"background"}


def test_noise_holds_no_scene() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not oracle.score(CLAIM, noise)["scene"]


def test_only_what_is_claimed_is_scored() -> None:
    claim = {"count": 1, "objects": [{"colour": "red", "shape": "circle"}]}
    assert set(oracle.score(claim, _scene(size="small"))) == {"count", "colour", "shape", "scene"}
