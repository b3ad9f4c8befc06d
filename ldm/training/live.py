"""What a training shows while it runs: tables and pictures in its run directory, which `ldm watch` and trackers read,
and a line when its loss leaves the band of a known run. Nothing here changes a step."""

import sys
from pathlib import Path
from typing import Self

from ldm.compute.state import Run
from ldm.core.errors import ConfigError
from ldm.training import bands, plots
from ldm.training.history import PACE, History, Row
from ldm.training.pace import Pace
from ldm.training.params import TrainingParams
from ldm.training.trackers import Trackers


class Live:
    """A context manager around the steps of a training. Only the main process shows anything."""

    def __init__(
        self, run: Run, params: TrainingParams, history: History, pace: Pace, *, step: int, is_shown: bool
    ) -> None:
        """history, step: as they are when the training starts or goes on."""
        self._run, self._band_path, self.pace, self._is_shown = run, params.loss_band, pace, is_shown
        self._stage, self._speeds = run.directory.parent.name, list[Row]()
        self._band = self._read_band() if params.loss_band and is_shown else []
        self._was_outside = any(bands.is_outside(self._band, row) for row in history.training[-1:])
        self._num_rows, self._step = len(history.training), step
        kinds = run.machine.trackers if run.machine and is_shown else []
        self._trackers = Trackers(kinds, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._trackers.close()

    def show(self, history: History) -> None:
        """Show what the history has got: rows of its curve, a validation, a picture that is in the run directory."""
        if not self._is_shown:
            return
        if len(history.training) > self._num_rows:
            row = history.training[-1]
            last = int(row["step"])
            if last > self._step:
                self._speeds.append(self.pace.row(last, last - self._step))
            self._num_rows, self._step = len(history.training), last
            self._compare(row)
        history.write_tables(self._run.directory)
        plots.write_table(self._run.directory / PACE, self._speeds)
        tables = {"training": history.training, "validation": history.validation, "machine": self._speeds}
        self._trackers.tell(tables)

    def _read_band(self) -> list[bands.Window]:
        """The band of this stage. One that cannot be read is said; it is not worth the end of a long pipeline."""
        try:
            return bands.read(Path(self._band_path or ""), self._stage)
        except ConfigError as error:
            print(f"{error}\nthe training goes on without it", file=sys.stderr, flush=True)
            return []

    def _compare(self, row: Row) -> None:
        """Print a line if the loss has left the band just now."""
        is_outside = bands.is_outside(self._band, row)
        if is_outside and not self._was_outside:
            window = bands.window_at(self._band, int(row["step"]))
            assert window is not None
            found = (
                f"loss {row['loss']:.4g} at step {int(row['step'])} is not in {window.least:g} to {window.greatest:g}"
            )
            why = f"as in the known run of {self._band_path}; if data or params are others, set loss_band: null"
            print(f"{self._stage}: {found}, {why}", flush=True)
        self._was_outside = is_outside
