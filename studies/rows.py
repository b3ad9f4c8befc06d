"""Rows of a study's JSON."""

from collections.abc import Mapping
from typing import Any

from ldm.evaluation.metrics import Estimate

Row = Mapping[str, Any]
"""What a unit of work showed; an estimate is a list of its value and both ends of its interval."""


def interval(estimate: Estimate) -> list[float]:
    """An estimate as JSON, to six digits."""
    return [float(f"{number:.6g}") for number in (estimate.value, estimate.low, estimate.high)]


def estimate(values: list[float]) -> Estimate:
    """The estimate that `interval` wrote, without its count."""
    value, low, high = values
    return Estimate(value, low, high, 0)


def summary(row: Row) -> str:
    """A row in one line of the log: its name and the values of its estimates."""
    values = [f"{name} {value[0]:.4g}" for name, value in row.items() if isinstance(value, list)]
    return f"{row['name']}: {', '.join(values)} ({row['seconds']} s)"
