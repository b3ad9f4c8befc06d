"""Params of oracles: one class per kind, named after its corpus."""

from typing import Literal

from pydantic import Field

from ldm.core.config import Section


class ShapesOracleParams(Section):
    """The oracle of the corpus `shapes`: reads a scene from pixels by fixed rules and compares it with the claim."""

    kind: Literal["shapes"]
    """Kind of oracle, named after its corpus."""


class ClassifierOracleParams(Section):
    """The oracle of every corpus of classes: a support vector machine with a Gaussian kernel, learned from the pixels
    of real training images, says which class an image shows."""

    kind: Literal["classifier"]
    """Kind of oracle."""
    num_images: int = Field(ge=2, le=10**6)
    """Training images that it learns from (fewer if there are fewer); the time grows with the square."""
    cost: float = Field(gt=0, le=10**6)
    """Cost C of an error in training: larger fits the training images more closely."""


OracleParams = ShapesOracleParams | ClassifierOracleParams
"""Params of every kind of oracle."""
