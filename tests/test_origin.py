import json

import numpy as np
import pytest

from ldm.core import config
from ldm.core.errors import IntegrityError
from ldm.core.images import decode_png, encode_png
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from tests.import_closure import ROOT

PARAMS = config.Document(ROOT / "params.yaml").data["sample"]["drawing"]

SETTINGS = {"seed": 3, "guidance_scale": 2.5, "guidance_interval": [0.0, 1.0]}


def origins() -> list[Origin]:
    texts = ["a red circle", "ein grüner Stern ★"]
    return Origin.of_batch(texts, [7, 9], SETTINGS, {"unet": "1" * 64})


def test_a_png_carries_its_origin_and_its_pixels():
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for position, origin in enumerate(origins()):
        png = origin.png(picture)
        found = Origin.read(png, "here")
        assert found == origin and found.settings == SETTINGS
        assert (found.prompt_number, found.batch_size, found.position) == ([7, 9][position], 2, position)
        assert np.array_equal(decode_png(png), picture)
        assert png == origin.png(picture)


@pytest.mark.parametrize(
    ("png", "message"),
    [
        (encode_png(np.zeros((2, 2, 3), np.uint8)), "no PNG that says what it was made from"),
        (b"GIF89a", "no PNG that says"),
        (encode_png(np.zeros((2, 2, 3), np.uint8), {"ldm": '{"prompt": "x"}'}), "5 wrong fields"),
    ],
)
def test_a_picture_without_one_is_refused(png: bytes, message: str):
    with pytest.raises(IntegrityError, match=f"there: {message}"):
        Origin.read(png, "there")


def asked(settings=None, **changes) -> Origin:
    drawing = DrawingParams.model_validate(PARAMS)
    fields = {"prompt": "a star", "prompt_number": 0, "settings": drawing.model_dump(mode="json") | (settings or {})}
    return Origin.model_validate({**fields, "batch_size": 8, "position": 2, "models": {}, **changes})


def test_settings_of_an_origin_are_those_of_the_section():
    drawing = DrawingParams.model_validate(PARAMS)
    assert asked().drawing(drawing, "there") == drawing
    assert asked({"seed": 5}).drawing(drawing, "there") == drawing.model_copy(update={"seed": 5})
    assert asked(settings={}).model_copy(update={"settings": {"seed": 6}}).drawing(drawing, "there").seed == 6


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.5), ("dpm_solver_pp_2m", 0)])
def test_settings_of_a_former_version_are_understood(sampler, eta):
    """They were the whole section `sample`, with the sampler's name and its eta among them."""
    drawing = DrawingParams.model_validate(PARAMS)
    before = drawing.model_dump(mode="json") | {"sampler": sampler, "eta": eta, "seed": 5, "num_grid_rows": 2}
    found = asked().model_copy(update={"settings": before}).drawing(drawing, "there")
    options = {"eta": eta} if sampler == "ddim" else {}
    assert found.sampler.model_dump() == {"kind": sampler, **options}
    assert found == drawing.changed({"sampler": {"kind": sampler, **options}, "seed": 5})


def test_settings_from_before_other_kinds_of_guidance_mean_what_they_meant():
    """Whatever the params file says now."""
    drawing = DrawingParams.model_validate(PARAMS)
    new = {"guidance", "guidance_rescale", "negative_prompt", "dynamic_threshold", "size_px"}
    before = {name: value for name, value in drawing.model_dump(mode="json").items() if name not in new}
    now = drawing.changed({"guidance": "ho_salimans", "guidance_rescale": 0.7, "negative_prompt": "x"})
    assert asked().model_copy(update={"settings": before}).drawing(now, "there") == drawing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"num_steps": 10**6}}, "num_steps: found 1000000, where legal is an integer >= 1"),
        ({"settings": {"sampler": {"kind": "unheard"}}}, "sampler.*found .unheard."),
        ({"settings": {"stranger": 1}}, "stranger: unknown"),
        ({"settings": {"guidance_scale": float("nan")}}, "guidance_scale: found NaN"),
        ({"batch_size": 5000}, "one of a batch of 5000 images; expected at most 4096"),
        ({"prompt": "a" * 200_000}, "200000 characters"),
    ],
)
def test_a_replay_of_too_much_or_of_nonsense_is_refused(changes, message):
    with pytest.raises(IntegrityError, match=f"^there: .*{message}.*\nfix: "):
        asked(**changes).drawing(DrawingParams.model_validate(PARAMS), "there")


@pytest.mark.parametrize("changes", [{"position": 8}, {"batch_size": 0}, {"prompt_number": -1}])
def test_a_place_outside_its_batch_is_no_origin(changes):
    text = json.dumps(asked().model_dump() | changes)
    with pytest.raises(IntegrityError, match="1 wrong fields"):
        Origin.read(encode_png(np.zeros((2, 2, 3), np.uint8), {"ldm": text}), "there")
