"""Captions of the corpus `shapes`: sentence forms with slots, the words that fill them, and what a caption states.

What a caption claims follows from the kind of its form and from the words of its slots, never from the sentence: so a
new form or synonym is one entry of a table. All words mean exactly what the scene shows ("on top of" would say that two
shapes touch). Plain forms and words are the frequent ones, since a training sees each caption only a few times.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ldm.corpora.shapes_scenes import Object, Scene
from ldm.corpora.shapes_vocabulary import AXES

Kind = Literal["relation", "place", "list"]
"""What a form tells of where objects are: of each other, of each in the image, or nothing."""
Forms = Mapping[tuple[Kind, int], Mapping[str, int]]
"""By kind and number of objects: forms with their weights.

{a}, {b} and {c} are objects, {at_a} is the place of {a}, and {r} a relation: {a} is always {r} {b}, and {b} {r} {c}.
{open} is an opening such as "a picture of", or nothing.
"""

FORMS: Forms = {
    ("place", 1): {
        "{open}{a} {at_a}": 8,
        "{at_a} {a}": 3,
        "{at_a} there is {a}": 1,
        "{a} is {at_a}": 1,
    },
    ("list", 1): {"{open}{a}": 1},
    ("relation", 2): {
        "{open}{a} {r} {b}": 10,
        "{a} is {r} {b}": 3,
        "{r} {b} there is {a}": 2,
        "{b}, and {r} it {a}": 2,
        "{open}{b} with {a} {r} it": 2,
        "{b}, {a} {r} it": 1,
    },
    ("place", 2): {
        "{open}{a} {at_a} and {b} {at_b}": 4,
        "{at_a} {a}, {at_b} {b}": 4,
        "{a} {at_a}, {b} {at_b}": 1,
        "{at_a} {a} and {at_b} {b}": 1,
        "{a} is {at_a} and {b} is {at_b}": 1,
    },
    ("list", 2): {"{open}{a} and {b}": 3, "{a}, {b}": 1, "two shapes: {a} and {b}": 1},
    ("relation", 3): {"{open}{a} {r} {b} {r} {c}": 3, "{c}, and {r} it {b}, and {r} it {a}": 1},
    ("place", 3): {
        "{open}{a} {at_a}, {b} {at_b} and {c} {at_c}": 1,
        "{at_a} {a}, {at_b} {b}, {at_c} {c}": 1,
    },
    ("list", 3): {"{open}{a}, {b} and {c}": 3, "three shapes: {a}, {b} and {c}": 1},
}
"""The forms of all splits but `reworded`."""
REWORDED_FORMS: Forms = {
    ("place", 1): {"{at_a} is {a}": 1, "there is {a}, and it is {at_a}": 1},
    ("relation", 2): {
        "{r} {b} is {a}": 1,
        "there is {b}, and {a} is {r} it": 1,
        "there is {a}, and it is {r} {b}": 1,
    },
    ("place", 2): {"{at_a} is {a} and {at_b} is {b}": 1, "there is {a} {at_a}, and {b} is {at_b}": 1},
    ("relation", 3): {"{r} {c} is {b}, and {r} {b} is {a}": 1},
    ("place", 3): {"{at_a} is {a}, {at_b} is {b} and {at_c} is {c}": 1},
}
"""The forms of the split `reworded` and of no other, in words of the others."""

_OPENINGS = {"": 7, "there is ": 2, "a picture of ": 2, "an image of ": 1, "a drawing of ": 1}
"""Before the indefinite article."""
_ARTICLES = {"a": 7, "": 2, "the": 1}
_BACKGROUNDS = {
    "{text} on {article}{name} background": 4,
    "{text} on {name}": 3,
    "{text} against {article}{name} background": 1,
    "{text}, {name} background": 1,
    "on {article}{name} background, {text}": 1,
}
_BACKGROUND_FRACTION = 0.5
_ENDINGS = {"{text}": 8, "{capital}": 1, "{capital}.": 2, "{text}.": 1}
_LIST_FRACTION = 0.2
"""Share of the captions that tell no relation which tell no place either."""
_UNSIZED_FRACTION = 0.2
_MAX_TOKENS = {1: 22, 2: 22, 3: 30}
"""By number of objects; longer captions are drawn again. With its two ends the longest then has 24 tokens, and every
step of the denoiser costs as much as that one."""
_PIECES = {
    **dict.fromkeys(("beneath", "crimson", "cyan", "disk"), 2),
    **dict.fromkeys(("rhombus", "turquoise", "underneath"), 3),
}
"""Words that are several tokens of the default's vocabulary."""

_WORDS = {
    "red": {"red": 6, "crimson": 1},
    "yellow": {"yellow": 6, "gold": 1},
    "purple": {"purple": 4, "violet": 1},
    "cyan": {"cyan": 4, "turquoise": 1},
    "grey": {"grey": 2, "gray": 1},
    "small": {"small": 3, "little": 1, "tiny": 1},
    "large": {"large": 3, "big": 1, "huge": 1},
    "circle": {"circle": 4, "disc": 1, "disk": 1},
    "diamond": {"diamond": 5, "rhombus": 1},
    "cross": {"cross": 6, "plus": 1, "plus sign": 1},
    "above": {"above": 3, "over": 1},
    "below": {"below": 3, "under": 1, "beneath": 1, "underneath": 1},
    "left of": {"left of": 2, "to the left of": 2, "on the left of": 1},
    "right of": {"right of": 2, "to the right of": 2, "on the right of": 1},
    "top": {"at the top": 1},
    "bottom": {"at the bottom": 1},
    "left": {"on the left": 4, "on the left side": 1},
    "right": {"on the right": 4, "on the right side": 1},
    "centre": {"in the centre": 2, "in the center": 1, "in the middle": 1},
}
"""Names of the vocabulary, and words for them with their weights; a name that is not here is its own only word."""
_FORWARD = {"vertical": "above", "horizontal": "left of"}
_BACKWARD = {"vertical": "below", "horizontal": "right of"}


@dataclass(frozen=True)
class Caption:
    """A sentence and what it states; see `ldm.oracles.shapes.compare` for the layout of a claim."""

    text: str
    claim: dict[str, object]


def caption(rng: random.Random, scene: Scene, relation_fraction: float, forms: Forms) -> Caption:
    """One caption in one of `forms`. Several objects are described by relation in `relation_fraction` of cases."""
    while True:
        drawn = _draw(rng, scene, relation_fraction, forms)
        if num_tokens(drawn.text) <= _MAX_TOKENS[len(scene.objects)]:
            return drawn


def num_tokens(text: str) -> int:
    """How many tokens of the default's vocabulary a caption has, without the two ends."""
    return sum(_PIECES.get(word, 1) for word in re.findall(r"\w+|[^\w\s]", text.lower()))


def _draw(rng: random.Random, scene: Scene, relation_fraction: float, forms: Forms) -> Caption:
    count, article = len(scene.objects), _pick(rng, _ARTICLES)
    kind = _kind(rng, count, relation_fraction, forms)
    placed = list(zip(_places(scene), scene.objects, strict=True))
    claim: dict[str, object] = {"count": count}
    slots = {"open": _pick(rng, _OPENINGS) if article == "a" else ""}
    if kind == "relation":
        forward = rng.random() < 0.5
        placed = placed if forward else placed[::-1]
        claim["relation"] = relation = (_FORWARD if forward else _BACKWARD)[scene.arrangement]
        slots["r"] = _word(rng, relation)
    else:
        rng.shuffle(placed)
    described = [_describe(rng, o, article) for _, o in placed]
    for letter, (place, _), (phrase, _) in zip("abc", placed, described, strict=False):
        slots |= {letter: phrase, f"at_{letter}": _word(rng, place)}
    places = [{"place": place} if kind == "place" else {} for place, _ in placed]
    claim["objects"] = [stated | where for (_, stated), where in zip(described, places, strict=True)]
    text = _pick(rng, forms[kind, count]).format(**slots)
    if rng.random() < _BACKGROUND_FRACTION:
        text = _before(rng, text, scene.background, article)
        claim["background"] = scene.background
    return Caption(_pick(rng, _ENDINGS).format(text=text, capital=text[0].upper() + text[1:]), claim)


def _kind(rng: random.Random, count: int, relation_fraction: float, forms: Forms) -> Kind:
    if count > 1 and rng.random() < relation_fraction:
        return "relation"
    return "list" if rng.random() < _LIST_FRACTION and ("list", count) in forms else "place"


def _places(scene: Scene) -> list[str]:
    """The names of the places of the objects, in their order."""
    match len(scene.objects):
        case 1:
            return [scene.arrangement]
        case 2:
            return list(AXES[scene.arrangement])
        case _:
            first, last = AXES[scene.arrangement]
            return [first, "centre", last]


def _describe(rng: random.Random, o: Object, article: str) -> tuple[str, dict[str, str]]:
    """A noun phrase for one object and the attributes it states."""
    stated = {"colour": o.colour, "shape": o.shape}
    if rng.random() >= _UNSIZED_FRACTION:
        stated = {"size": o.size} | stated
    phrase = " ".join(_word(rng, name) for name in stated.values())
    if article == "a" and phrase[0] in "aeiou":
        article = "an"
    return f"{article} {phrase}".strip(), stated


def _before(rng: random.Random, text: str, background: str, article: str) -> str:
    """The text with its background told."""
    words = {"text": text, "name": _word(rng, background), "article": "a " if article else ""}
    return _pick(rng, _BACKGROUNDS).format(**words)


def _word(rng: random.Random, name: str) -> str:
    return _pick(rng, _WORDS.get(name, {name: 1}))


def _pick(rng: random.Random, weights: Mapping[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
