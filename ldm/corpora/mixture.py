"""Several corpora as one: the units of a part of a mixture."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import UInt8

from ldm.corpora import spelling
from ldm.corpora.pairs import REPEAT, Item, Litter, Picture, Rejection, Unit, key_of, size_notes
from ldm.corpora.params import PartParams


def unit(name: str, part: PartParams, of_corpus: Unit) -> Unit:
    """A unit of the corpus of a part, as a unit of the mixture. name: of the part."""
    facts = [name, part.repeats, part.caption, of_corpus.sha256]
    sha256 = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return Unit(f"{name}: {of_corpus.name}", sha256, partial(_items, name, part, of_corpus))


def _items(name: str, part: PartParams, of_corpus: Unit) -> Iterator[Item]:
    for item in of_corpus.items():
        if isinstance(item, Litter):
            yield item
            continue
        if isinstance(item, Rejection):
            yield replace(item, key=key_of(f"{name}-{item.key}"))
            continue
        told = item if part.caption is None else replace(item, captions=[spelling.clean(part.caption)], claims=[None])
        for copy in range(part.repeats):
            image = partial(_repeated, told.image) if copy else told.image
            yield replace(told, image=image, key=key_of(f"{name}-{item.key}" + f"-{copy + 1}" * (part.repeats > 1)))


def _repeated(image: UInt8[np.ndarray, "h w 3"] | Callable[[], UInt8[np.ndarray, "h w 3"] | Picture]) -> Picture:
    """The image, with a note that it is there already."""
    made = image() if callable(image) else image
    picture = made if isinstance(made, Picture) else Picture(made, size_notes(*made.shape[1::-1]))
    return replace(picture, notes=(*picture.notes, REPEAT))
