"""What a training logs: rows of its curves, skipped updates, and the breaks in its course."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.core import artifact
from ldm.training import plots

Row = dict[str, float]


@dataclass(frozen=True)
class History:
    """What was logged: one row per `log_every_steps` updates (means over them), one per validation, for every update
    that was skipped its step and the keys of its samples, and for every state that `ldm resume` took over from other
    params, inputs or code its step, hash and what differed (key -> before, after)."""

    training: list[Row]
    validation: list[Row]
    skipped: list[dict[str, Any]]
    resumed_from: list[dict[str, Any]]

    @property
    def facts(self) -> dict[str, Any]:
        """For the passport of what was trained: `resumed_from`, if it was."""
        return {"resumed_from": self.resumed_from} if self.resumed_from else {}

    def write(self, directory: Path) -> None:
        """Write `curves.csv`, `validation.csv`, `skipped_updates.json` and, drawn from the tables, `curves.png`."""
        artifact.write_json(directory / "skipped_updates.json", self.skipped)
        plots.draw_curves(self.write_tables(directory), directory / "curves.png")

    def write_tables(self, directory: Path) -> dict[str, Path]:
        """Write `curves.csv` and `validation.csv`; returns label -> file."""
        tables = {"training": directory / "curves.csv", "validation": directory / "validation.csv"}
        plots.write_table(tables["training"], self.training)
        plots.write_table(tables["validation"], self.validation)
        return tables
