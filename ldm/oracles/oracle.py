"""What evaluation asks of a corpus whose captions can be checked.

Such a corpus writes, beside a caption, what it claims of the image. Its oracle says which claims an image honours.
Evaluation and its report know attributes by name only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int8, UInt8

Claim = Mapping[str, Any]
"""What a caption states, as JSON; its layout is an agreement between a corpus and its oracle."""
NOT_STATED, WRONG, RIGHT = -1, 0, 1
"""Codes of an attribute."""


@dataclass(frozen=True)
class Oracle:
    """How the claims of one corpus are checked, and how the results are named."""

    attributes: tuple[str, ...]
    """All that is checked, in the order of tables; parts of the names of metrics, `ATTRIBUTE_accuracy_SET`."""
    headlines: tuple[str, ...]
    """Attributes that sum up a claim: first the main one, then stricter ones that begin with its name. They lead every
    table, and the controls are theirs: `oracle_real`, and `oracle_real_strict` for `scene_strict` after `scene`."""
    highlights: tuple[str, ...]
    """Attributes that are given over all sets too, and in the guidance sweep."""
    labels: Mapping[str, str]
    """Attribute -> what tables call it, where this is not its name."""
    counted: str
    """A noun in the singular: the main headline is also given by the number of these that a claim tells of."""
    count: Callable[[Claim], int]
    """That number."""
    check: Callable[[UInt8[np.ndarray, "h w 3"], Sequence[Claim]], list[dict[str, bool]]]
    """For each claim, whether the image honours what it states: attribute -> answer; what is not stated is left out."""

    def __post_init__(self) -> None:
        assert {*self.headlines, *self.highlights, *self.labels} <= set(self.attributes)
        assert all(name.startswith(self.main) for name in self.headlines)

    @property
    def main(self) -> str:
        """The attribute that counts most."""
        return self.headlines[0]

    def label(self, attribute: str) -> str:
        """What tables call an attribute."""
        return self.labels.get(attribute, attribute)

    def codes(
        self, image: UInt8[np.ndarray, "h w 3"], claims: Sequence[Claim | None]
    ) -> Int8[np.ndarray, "claims attributes"]:
        """The answers of `check` as codes; where there is no claim, nothing is stated."""
        answers = iter(self.check(image, [claim for claim in claims if claim is not None]))
        rows = [{} if claim is None else next(answers) for claim in claims]
        codes = [[int(row[name]) if name in row else NOT_STATED for name in self.attributes] for row in rows]
        return np.array(codes, dtype=np.int8)
