"""Captions of the corpus `shapes`: a reader that knows English, and none of the forms, finds in each what it claims."""

import hashlib
import random
import re
from itertools import count as count_from
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest

from ldm.core import config
from ldm.core.shards import SPLITS, Split
from ldm.corpora import shapes, shapes_captions, shapes_scenes
from ldm.corpora import shapes_vocabulary as vocabulary
from ldm.corpora.params import ShapesParams
from ldm.text.embedding.words import unknown_words, words_of
from ldm.text.model import clip
from ldm.text.training.params import TrainClipParams, TrainedClipParams
from tests.corpora import shapes_params
from tests.import_closure import ROOT

PARAMS: ShapesParams = shapes_params(num_train=1, num_val=1, num_held_out=1)
MEANINGS = {
    **{word: "small" for word in ("small", "little", "tiny")},
    **{word: "large" for word in ("large", "big", "huge")},
    **{name: name for name in (*vocabulary.COLOURS, *vocabulary.SHAPES)},
    **{"crimson": "red", "gold": "yellow", "violet": "purple", "turquoise": "cyan"},
    **{"disc": "circle", "disk": "circle", "rhombus": "diamond", "plus": "cross", "plus sign": "cross"},
}
"""Words of looks and what they mean, written down a second time."""
RELATIONS = {
    **{word: "above" for word in ("above", "over")},
    **{word: "below" for word in ("below", "under", "beneath", "underneath")},
    **{f"{before}left of": "left of" for before in ("", "to the ", "on the ")},
    **{f"{before}right of": "right of" for before in ("", "to the ", "on the ")},
}
PLACES = {
    **{"at the top": "top", "at the bottom": "bottom"},
    **{f"on the {side}{after}": side for side in ("left", "right") for after in ("", " side")},
    **{f"in the {word}": "centre" for word in ("centre", "center", "middle")},
}
OTHER_WORDS = {*re.findall(r"\w+", "a an and drawing image is it of picture shapes there three two with")}
CSS = {"crimson": (220, 20, 60), "gold": (255, 215, 0), "turquoise": (64, 224, 208), "violet": (127, 0, 255)}
"""Colours as CSS has them; CSS's violet is a pink, so that of the colour wheel."""
IMAGES: dict[Split, str] = {
    "train": "7a5c9cbb7d0ec069ab2905ff3e13b8f723ff958daa5e5d1c44576586354d55c9",
    "val": "6720cec6fd3b604e7f04b3ac11c706bd33e7804486220658285563968a0ddce6",
    "unseen": "64f25d9dae56ca7fb3a68176e3a6671206046dbf9291ecb21b07ab14eba5b2a6",
    "held_out": "6a16d5456ebfa498b4d5d4503df4eeaf515bc11ddb53d1f4f34b35cbb88f9ccf",
}
"""SHA-256 of the pixels of the first twenty images of each split, at commit 61be5f6 and since."""
Tokens = list[Any]
"""What is left of a sentence: (colour, shape) of an object, names of relations and places in tuples, other words."""


def _alternatives(words: dict[str, str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_SIZES, _COLOURS, _SHAPES = (
    _alternatives({word: name for word, name in MEANINGS.items() if name in names})
    for names in (vocabulary.RADII, vocabulary.COLOURS, vocabulary.SHAPES)
)
_TOKEN = re.compile(
    rf"(?P<relation>{_alternatives(RELATIONS)})\b|(?P<place>{_alternatives(PLACES)})\b|"
    rf"(?:(?:a|an|the) )?(?:(?P<size>{_SIZES}) )?(?P<colour>{_COLOURS}) (?P<shape>{_SHAPES})\b|(?P<word>\w+)|[ ,.:]"
)
_BACKGROUND = re.compile(r"(?:(?:^| )(?:on|against) |, )(?:a )?(white|grey|gray|black)(?: background)?(?:, |\.?$)")


def _read(text: str) -> tuple[Tokens, list[dict[str, str]], str | None]:
    """Tokens, the stated looks of objects in their order, and the background."""
    text, background = text.lower(), None
    if found := _BACKGROUND.search(text):
        background, text = found[1].replace("gray", "grey"), text[: found.start()] + text[found.end() :]
    tokens, looks, end = Tokens(), list[dict[str, str]](), 0
    for match in _TOKEN.finditer(text):
        assert match.start() == end, f"unread: {text[end : match.start()]!r} of {text!r}"
        end, kind = match.end(), match.lastgroup
        if kind == "shape":
            looks.append({name: MEANINGS[match[name]] for name in ("size", "colour", "shape") if match[name]})
            tokens.append((looks[-1]["colour"], looks[-1]["shape"]))
        elif kind in ("relation", "place"):
            tokens.append(((RELATIONS if kind == "relation" else PLACES)[match[kind]],))
        elif kind == "word":
            assert match["word"] in OTHER_WORDS, f"unread: {match['word']!r} of {text!r}"
            tokens.append(match["word"])
    return [token for token in tokens if token not in ("is", "there")], looks, background


def _objects(tokens: Tokens) -> list[tuple[str, str]]:
    return [token for token in tokens if isinstance(token, tuple) and len(token) == 2]


def _told(tokens: Tokens) -> tuple[set[Any], set[Any]]:
    """(subject, relation, object) of every relation, and (object, place) of every place."""
    relations, places = set[Any](), set[Any]()
    place_first = not _objects(tokens[: next((i for i, t in enumerate(tokens) if t in _PLACE_TOKENS), 0)])
    for i, token in enumerate(tokens):
        before, after = _objects(tokens[:i]), _objects(tokens[i + 1 :])
        if token in _PLACE_TOKENS:
            places.add(((after[0] if place_first else before[-1]), token[0]))
        elif token in _RELATION_TOKENS:
            last = tokens[i - 1] if i else None
            own = before[-1] if last == "it" or last in before else None
            if tokens[i + 1] == "it":
                subject, of = (own, before[-2]) if own else (after[0], before[-1])
            else:
                subject, of = own or after[1], after[0]
            relations.add((subject, token[0], of))
    return relations, places


_RELATION_TOKENS = {(name,) for name in RELATIONS.values()}
_PLACE_TOKENS = {(name,) for name in PLACES.values()}


def _check(text: str, claim: dict[str, Any], scene: shapes_scenes.Scene) -> None:
    """The text says what the claim says, and the scene shows it."""
    tokens, looks, background = _read(text)
    claimed, shown = claim["objects"], {(o.colour, o.shape): o for o in scene.objects}
    assert claim["count"] == len(scene.objects) == len(claimed)
    stated = {tuple(sorted((name, o[name]) for name in o if name != "place")) for o in claimed}
    assert {tuple(sorted(look.items())) for look in looks} == stated
    assert all(shown[look["colour"], look["shape"]].size == look["size"] for look in looks if "size" in look)
    assert background == claim.get("background") and background in (None, scene.background)
    relations, places = _told(tokens)
    names = [(o["colour"], o["shape"]) for o in claimed]
    assert relations == ({(a, claim["relation"], b) for a, b in pairwise(names)} if "relation" in claim else set())
    assert all(_holds(shown[a], relation, shown[b]) for a, relation, b in relations)
    assert places == {(name, o["place"]) for name, o in zip(names, claimed, strict=True) if "place" in o}
    assert all(_is_at(shown[name], place) for name, place in places)


def _holds(a: shapes_scenes.Object, relation: str, b: shapes_scenes.Object) -> bool:
    """Whether all of one is on that side of all of the other."""
    gaps = {"above": b.y - a.y, "below": a.y - b.y, "left of": b.x - a.x, "right of": a.x - b.x}
    return gaps[relation] > a.radius + b.radius


def _is_at(o: shapes_scenes.Object, place: str) -> bool:
    sides = {"top": o.y < 0.4, "bottom": o.y > 0.6, "left": o.x < 0.4, "right": o.x > 0.6}
    return sides.get(place, max(abs(o.x - 0.5), abs(o.y - 0.5)) < 0.1)


def _kind(claim: dict[str, Any]) -> str:
    return "relation" if "relation" in claim else "place" if "place" in claim["objects"][0] else "list"


EVERY = [
    (kind, count, form)
    for forms in (shapes_captions.FORMS, shapes_captions.REWORDED_FORMS)
    for (kind, count), texts in forms.items()
    for form in texts
]


@pytest.mark.parametrize(("kind", "count", "form"), EVERY)
def test_a_caption_of_every_form_says_what_it_claims_and_the_scene_shows_it(kind: Any, count: int, form: str) -> None:
    params = PARAMS.model_copy(update={"object_count_weights": [float(n == count) for n in (1, 2, 3)]})
    forms, rng, checked = {**shapes_captions.FORMS, (kind, count): {form: 1}}, random.Random(0), 0
    scenes = (shapes_scenes.scene_at(number, "train", params) for number in count_from(0))
    while checked < 60:
        scene = next(scenes)
        drawn = shapes_captions.caption(rng, scene, 0.5, forms)
        if _kind(drawn.claim) == kind:
            _check(drawn.text, drawn.claim, scene)
            checked += 1


def test_the_reader_notices_a_wrong_claim() -> None:
    scene = next(s for s in (shapes_scenes.scene_at(n, "train", PARAMS) for n in range(99)) if len(s.objects) == 2)
    a, b = ({"colour": o.colour, "shape": o.shape} for o in scene.objects)
    first, second = (f"{look['colour']} {look['shape']}" for look in (a, b))
    relation, inverse = {"vertical": ("over", "below"), "horizontal": ("left of", "right of")}[scene.arrangement]
    claim: dict[str, Any] = {"count": 2, "objects": [a, b], "relation": RELATIONS[relation]}
    for text in (
        f"{first} {relation} {second}",
        f"{second}, and {relation} it {first}",
        f"{relation} {second} {first}",
    ):
        _check(text, claim, scene)
        for other in (text.replace(relation, inverse), f"{text} on blue", text.replace(first, second)):
            with pytest.raises((AssertionError, IndexError)):
                _check(other, claim, scene)


@pytest.mark.parametrize("split", SPLITS)
def test_captions_of_every_split_are_read_as_they_claim(split: Split) -> None:
    for number in range(300):
        pair = shapes.pair_at(number, split, PARAMS, 64)
        for text, claim in zip(pair.captions, cast("list[dict[str, Any]]", pair.claims), strict=True):
            _check(text, claim, shapes_scenes.scene_at(number, split, PARAMS))


def _captions(split: Split, count: int) -> list[str]:
    return [text for number in range(count) for text in shapes.pair_at(number, split, PARAMS, 64).captions]


def _skeleton(text: str) -> str:
    """The sentence form: what is between objects, relations and places, without opening and background."""
    text = re.sub(r"^(there is|an? \w+ of|\w+ shapes:) ", "", _BACKGROUND.sub("", text.lower()))
    names = {"relation": "R", "place": "P", "shape": "O"}
    found = (names.get(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(text))
    return " ".join(token for token in found if token not in (" ", ",", "."))


def test_the_forms_of_reworded_captions_are_in_no_other_split() -> None:
    others = {_skeleton(text) for split in SPLITS if split != "reworded" for text in _captions(split, 800)}
    reworded = {_skeleton(text) for text in _captions("reworded", 800)}
    assert "R O is O" in reworded and "O R O" in others
    assert len(reworded) == 7 and not reworded & others


def test_reworded_captions_are_of_known_words_and_every_word_is_used() -> None:
    train = _captions("train", 1500)
    assert unknown_words(_captions("reworded", 400), train) == []
    known = words_of(train)
    assert words_of([*MEANINGS, *RELATIONS, *PLACES, *vocabulary.BACKGROUNDS, "gray"]) <= known
    assert {"picture", "image", "drawing", "against", "there", "with", "it", "shapes"} <= known


def test_synonyms_of_colours_are_nearest_to_the_colour_they_stand_for() -> None:
    synonyms = {word: MEANINGS[word] for word in MEANINGS if MEANINGS[word] in vocabulary.COLOURS and word in CSS}
    assert set(synonyms) == {word for word, name in MEANINGS.items() if name in vocabulary.COLOURS and word != name}
    for word, name in synonyms.items():
        distances = {c: np.linalg.norm(np.subtract(CSS[word], rgb)) for c, rgb in vocabulary.COLOURS.items()}
        assert min(distances, key=distances.__getitem__) == name


def test_plain_captions_stay_frequent_and_some_look_like_sentences() -> None:
    texts = _captions("train", 1000)
    plain = [text for text in texts if re.fullmatch(r"O R O|O P( and)? O P|P O P O|O P|P O", _skeleton(text))]
    assert len(plain) / len(texts) > 0.5
    assert 0.1 < sum(text.endswith(".") for text in texts) / len(texts) < 0.4
    assert 0.1 < sum(text[0].isupper() for text in texts) / len(texts) < 0.4


def test_captions_of_two_objects_fit_into_24_tokens_of_the_default() -> None:
    source = config.read(TrainClipParams, "train_clip", ROOT / "recipes/default.yaml").source
    assert isinstance(source, TrainedClipParams)
    model = clip.build(source.network, 0)
    texts = [text for split in ("train", "reworded") for text in _captions(split, 800)]
    counts = model.num_tokens(texts)
    assert [int(count) - 2 for count in counts] == [shapes_captions.num_tokens(text) for text in texts]
    assert max(counts) == 24


def test_images_are_those_of_former_versions() -> None:
    """Captions have a random stream of their own: latents and the autoencoder outlive new ones."""
    for split, sha256 in IMAGES.items():
        images = hashlib.sha256()
        for number in range(20):
            images.update(shapes_scenes.render(shapes_scenes.scene_at(number, split, PARAMS), 64).tobytes())
        assert images.hexdigest() == sha256
