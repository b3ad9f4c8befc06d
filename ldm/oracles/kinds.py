"""Build an oracle of any kind."""

from pathlib import Path

from ldm.core.shards import Shards
from ldm.oracles.oracle import Oracle
from ldm.oracles.params import ClassifierOracleParams, OracleParams, ShapesOracleParams


def build(params: OracleParams, images: Path, captions: Path) -> Oracle:
    """The oracle that the params select; a classifier learns from the training images and captions in these folders."""
    match params:
        case ShapesOracleParams():
            from ldm.oracles import shapes

            return shapes.ORACLE
        case ClassifierOracleParams():
            from ldm.oracles import classifier

            return classifier.learn(params, Shards(images), Shards(captions))
