"""The interface of oracles, for corpora whose captions can be checked.

Such a corpus stores with each caption what the caption claims about the image. Its oracle decides which of these claims
are true of an image. Evaluation and its report use only the names of attributes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int8, UInt8

Claim = Mapping[str, Any]
"""What a caption states, as JSON; a corpus and its oracle agree on the layout."""
NOT_STATED, WRONG, RIGHT = -1, 0, 1
"""Codes of an attribute of an image."""
Told = tuple[str, str, str]
"""What of a thing was asked for, and what was read: attribute, value of the claim, value in the image."""


@dataclass(frozen=True)
class Oracle:
    """How the claims of one corpus are checked, and how the results are named."""

    attributes: tuple[str, ...]
    """All attributes that are checked, in the order of tables; metrics are named `ATTRIBUTE_accuracy_SET`."""
    headlines: tuple[str, ...]
    """Attributes that summarise a claim: first the main one, then stricter ones whose names begin with the main one's.
    They come first in every table. Controls are computed for them: `oracle_real` for a main headline `scene`, and
    `oracle_real_strict` for `scene_strict`."""
    highlights: tuple[str, ...]
    """Attributes that are also reported over all sets together, and in the guidance sweep."""
    labels: Mapping[str, str]
    """Attribute -> its label in tables, if that is not its name."""
    counted: str | None
    """A singular noun for what `count` counts; the main headline is also reported by this number. None = nothing is."""
    count: Callable[[Claim], int] | None
    """The number of these things that a claim states."""
    read: Callable[[UInt8[np.ndarray, "h w 3"]], Any]
    """What an image shows, whatever was asked for. The two functions below know the layout."""
    compare: Callable[[Claim, Any], dict[str, bool]]
    """Attribute of a claim -> whether the reading has it right; attributes that are not stated are left out."""
    told: Callable[[Claim, Any], list[Told]]
    """The values that a claim states beside those of the reading, as far as the things of both are known to be the
    same. They are counted in confusion matrices."""

    def __post_init__(self) -> None:
        assert {*self.headlines, *self.highlights, *self.labels} <= set(self.attributes)
        assert all(name.startswith(self.main) for name in self.headlines)

    @property
    def main(self) -> str:
        """The attribute that counts most."""
        return self.headlines[0]

    def label(self, attribute: str) -> str:
        """Label of an attribute in tables."""
        return self.labels.get(attribute, attribute)

    def codes(self, reading: Any, claims: Sequence[Claim | None]) -> Int8[np.ndarray, "claims attributes"]:
        """The answers of `compare` for one reading as codes; without a claim, every attribute is `NOT_STATED`."""
        rows = [{} if claim is None else self.compare(claim, reading) for claim in claims]
        codes = [[int(row[name]) if name in row else NOT_STATED for name in self.attributes] for row in rows]
        return np.array(codes, dtype=np.int8)
