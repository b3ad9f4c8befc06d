"""Params of oracles: one class per kind, named after its corpus."""

from typing import Literal

from ldm.core.config import Section


class ShapesOracleParams(Section):
    """The oracle of the corpus `shapes`: reads a scene from pixels by fixed rules and compares it with the claim."""

    kind: Literal["shapes"]
    """Kind of oracle, named after its corpus."""


OracleParams = ShapesOracleParams
"""Params of every kind of oracle; with a second kind, this becomes a union."""
