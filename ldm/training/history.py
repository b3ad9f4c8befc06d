"""What a training logs: rows of its curves, skipped updates, and states that it took over from other params or code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ldm.core import artifact
from ldm.core.params import Precision
from ldm.training import plots

Row = dict[str, float]
CURVES, VALIDATION = "curves.csv", "validation.csv"
"""Tables of a run directory, rewritten with every row, and of the results."""
PACE = "pace.csv"
"""Table of a run directory: how fast each row was computed since the training started or went on."""
PICTURES = "picture-*.png"
"""Pictures of a run directory, by their steps."""
_NUM_SHOWN_KEYS = 8


class BadUpdates(NamedTuple):
    """Counts of updates with a non-finite loss or gradient, which are skipped: int64 scalars on the device."""

    total: Tensor
    in_row: Tensor
    """Since the last good update."""
    most_in_row: Tensor
    last_step: Tensor
    """The step of the last one."""


@dataclass(frozen=True)
class History:
    """What was logged. training: one row per `log_every_steps` updates, means over them. validation: one row each.
    skipped: step and sample keys of every skipped update. resumed_from: step, hash and differences (key -> before,
    after) of every state of other params, inputs or code that `ldm resume` asked for. precision: in which it was
    computed, at last."""

    training: list[Row]
    validation: list[Row]
    skipped: list[dict[str, Any]]
    resumed_from: list[dict[str, Any]]
    precision: Precision | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """For the passport of the result: `precision`, and `resumed_from`, if there is any."""
        facts = {"precision": self.precision, "resumed_from": self.resumed_from}
        return {name: fact for name, fact in facts.items() if fact}

    def skip(self, step: int, keys: list[str]) -> str:
        """Note a skipped update and the samples of its batch; returns what the user is told of it."""
        self.skipped.append({"step": step, "keys": keys})
        more = f" and {len(keys) - _NUM_SHOWN_KEYS} more" if len(keys) > _NUM_SHOWN_KEYS else ""
        shown = f"{', '.join(keys[:_NUM_SHOWN_KEYS])}{more}"
        return f"step {step}: loss or gradient not finite, update skipped; samples {shown}"

    def write(self, directory: Path) -> None:
        """Write `curves.csv`, `validation.csv`, `skipped_updates.json`, and `curves.png`, drawn from the tables;
        without rows only the tables, which DVC looks for."""
        tables = self.write_tables(directory)
        if self.training or self.validation:
            artifact.write_json(directory / "skipped_updates.json", self.skipped)
            plots.draw_curves(tables, directory / "curves.png")

    def write_tables(self, directory: Path) -> dict[str, Path]:
        """Write `curves.csv` and `validation.csv`; returns label -> file."""
        tables = {"training": directory / CURVES, "validation": directory / VALIDATION}
        plots.write_table(tables["training"], self.training)
        plots.write_table(tables["validation"], self.validation)
        return tables


NO_HISTORY = History([], [], [], [])
"""Of a network that was not trained here."""
