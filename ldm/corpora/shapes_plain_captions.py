"""Plain captions of the corpus `shapes`: two sentence forms for a relation, two for places, and few words for each
thing, so that a short training learns them."""

import random

from ldm.corpora.shapes_captions import Caption
from ldm.corpora.shapes_scenes import Object, Scene
from ldm.corpora.shapes_vocabulary import AXES

_FORWARD = {"vertical": "above", "horizontal": "left of"}
_BACKWARD = {"vertical": "below", "horizontal": "right of"}
_WORDS = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "circle": ("circle", "disc"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "left": ("on the left",),
    "right": ("on the right",),
    "centre": ("in the centre", "in the middle"),
}


def _word(rng: random.Random, name: str) -> str:
    return rng.choice(_WORDS.get(name, (name,)))


def _describe(rng: random.Random, o: Object) -> tuple[str, dict[str, str]]:
    """A noun phrase for one object and the attributes it states; one phrase in eight leaves the size out."""
    stated = {"colour": o.colour, "shape": o.shape}
    if rng.random() < 1 / 8:
        phrase = f"{o.colour} {_word(rng, o.shape)}"
    else:
        phrase = f"{_word(rng, o.size)} {o.colour} {_word(rng, o.shape)}"
        stated["size"] = o.size
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}", stated


def _by_relation(rng: random.Random, scene: Scene) -> tuple[str, dict[str, object]]:
    first_is_subject = rng.random() < 0.5
    relation = (_FORWARD if first_is_subject else _BACKWARD)[scene.arrangement]
    ordered = scene.objects if first_is_subject else tuple(reversed(scene.objects))
    described = [_describe(rng, o) for o in ordered]
    joined = f" {_word(rng, relation)} ".join(phrase for phrase, _ in described)
    return joined, {"objects": [stated for _, stated in described], "relation": relation}


def _by_place(rng: random.Random, scene: Scene) -> tuple[str, dict[str, object]]:
    names = [scene.arrangement] if len(scene.objects) == 1 else list(AXES[scene.arrangement])
    if len(scene.objects) == 3:
        names.insert(1, "centre")
    placed = list(zip(names, scene.objects, strict=True))
    rng.shuffle(placed)
    described = [(name, *_describe(rng, o)) for name, o in placed]
    if rng.random() < 0.5:
        text = ", ".join(f"{_word(rng, name)} {phrase}" for name, phrase, _ in described)
    else:
        text = " and ".join(f"{phrase} {_word(rng, name)}" for name, phrase, _ in described)
    return text, {"objects": [{**stated, "place": name} for name, _, stated in described]}


def caption(rng: random.Random, scene: Scene, relation_fraction: float) -> Caption:
    """One caption. Several objects are described by relation in `relation_fraction` of cases, else by place."""
    by_relation = len(scene.objects) > 1 and rng.random() < relation_fraction
    text, claim = (_by_relation if by_relation else _by_place)(rng, scene)
    opening = rng.choice(("", "there is ")) if by_relation else ""
    claim["count"] = len(scene.objects)
    if rng.random() < 0.5:
        text += rng.choice((" on a {} background", " on {}")).format(scene.background)
        claim["background"] = scene.background
    return Caption(opening + text, claim)
