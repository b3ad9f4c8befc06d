"""Build an oracle of any kind."""

from ldm.oracles.oracle import Oracle
from ldm.oracles.params import OracleParams, ShapesOracleParams


def build(params: OracleParams) -> Oracle:
    """The oracle that the params select."""
    match params:
        case ShapesOracleParams():
            from ldm.oracles import shapes

            return shapes.ORACLE
