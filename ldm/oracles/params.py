"""Params of oracles: one class for each, under the name of its corpus."""

from typing import Literal

from ldm.core.config import Section


class ShapesOracleParams(Section):
    """Scenes of the corpus `shapes` are read back from pixels, by rule, and compared with what the caption claims."""

    kind: Literal["shapes"]
    """Its name, which is that of its corpus."""


OracleParams = ShapesOracleParams
"""All of them."""
