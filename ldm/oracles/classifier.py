"""An oracle that is learned: a classifier of real training images says which class a sample shows.

It judges samples by what their pixels show, not by the features of a network of this run. How far to trust it is its
score on real images that it has not seen, which stands beside that of the samples.
"""

import json

import numpy as np
from jaxtyping import Float, UInt8

from ldm import randomness
from ldm.core import images
from ldm.core.errors import ConfigError
from ldm.core.shards import Shards
from ldm.oracles.oracle import Claim, Oracle, Told
from ldm.oracles.params import ClassifierOracleParams

_CLASS = "class"
"""What a claim names, and the only attribute."""


def learn(params: ClassifierOracleParams, pictures: Shards, captions: Shards) -> Oracle:
    """An oracle for the classes that the captions of these training images claim. Equal images give an equal oracle.

    ConfigError: the captions claim fewer than two classes.
    """
    from sklearn.svm import SVC

    positions = np.arange(min(params.num_images, len(pictures)), dtype=np.int64)
    chosen = randomness.order(positions, len(pictures), randomness.key(0, "classifier")).tolist()
    claims = [json.loads(captions[i]["json"])["claims"][0] for i in chosen]
    labelled = [(i, claim[_CLASS]) for i, claim in zip(chosen, claims, strict=True) if claim and _CLASS in claim]
    names = sorted({name for _, name in labelled})
    if len(names) < 2:
        found = f"captions that claim {len(names)} classes"
        fix = "write {kind: retrieval, ...} or {kind: none}, or take a corpus of classes"
        raise ConfigError("params.yaml: evaluate.accuracy.kind: classifier", found, "at least two classes", fix)
    pixels = np.stack([_features(images.decode(pictures.image(i))) for i, _ in labelled])
    model = SVC(C=params.cost).fit(pixels, [name for _, name in labelled])

    def read(image: UInt8[np.ndarray, "h w 3"]) -> str:
        return str(model.predict(_features(image)[None])[0])

    attributes = (_CLASS,)
    return Oracle(attributes, attributes, (), {}, None, None, read=read, compare=_compare, told=_told)


def _compare(claim: Claim, name: str) -> dict[str, bool]:
    return {_CLASS: claim[_CLASS] == name}


def _told(claim: Claim, name: str) -> list[Told]:
    return [(_CLASS, claim[_CLASS], name)]


def _features(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " f"]:
    return image.reshape(-1) / 255
