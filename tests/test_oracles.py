"""The contract of oracles, tried on one that knows no corpus of ours, and which params name which oracle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.oracles import kinds, shapes
from ldm.oracles.oracle import NOT_STATED, RIGHT, WRONG, Claim, Oracle, Told
from ldm.oracles.params import ShapesOracleParams

IMAGE = np.full((2, 2, 3), 7, np.uint8)


def compare(claim: Claim, reading: int) -> dict[str, bool]:
    return {name: reading == value for name, value in claim.items()}


def told(claim: Claim, reading: int) -> list[Told]:
    return [(name, str(value), str(reading)) for name, value in claim.items()]


def oracle(**changes: Any) -> Oracle:
    """Claims are values that all pixels should have."""
    named = {"attributes": ("first", "second"), "headlines": ("first",), "highlights": (), "labels": {"first": "1st"}}
    functions = {"read": lambda image: int(image.max()), "compare": compare, "told": told}
    return Oracle(**{**named, "counted": "value", "count": len, **functions, **changes})


def test_answers_become_codes_in_the_order_of_the_attributes() -> None:
    codes = oracle().codes(oracle().read(IMAGE), [{"second": 7}, None, {"first": 6, "second": 7}])
    assert codes.dtype == np.int8
    assert codes.tolist() == [[NOT_STATED, RIGHT], [NOT_STATED, NOT_STATED], [WRONG, RIGHT]]


def test_tables_call_an_attribute_by_its_label_or_name() -> None:
    assert [oracle().label(name) for name in oracle().attributes] == ["1st", "second"]


@pytest.mark.parametrize(
    "changes",
    [
        {"headlines": ("third",)},
        {"highlights": ("third",)},
        {"labels": {"third": "3rd"}},
        {"headlines": ("first", "second")},
    ],
)
def test_names_that_do_not_fit_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        oracle(**changes)


def test_params_name_the_oracle_of_a_corpus() -> None:
    assert kinds.build(ShapesOracleParams(kind="shapes"), Path(), Path()) is shapes.ORACLE


def test_a_claim_about_scenes_counts_its_objects() -> None:
    assert shapes.ORACLE.count is not None and shapes.ORACLE.count({"count": 2, "objects": [{}, {}]}) == 2
