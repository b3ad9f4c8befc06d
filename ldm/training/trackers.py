"""Trackers: programs that show the curves and pictures of many trainings, such as TensorBoard.

A tracker is told what a run directory holds, each row and picture once. `trackers.json` there says how far it was told,
so a training that goes on, or one that gets a tracker on its way, has all its rows there, and none twice. No failure of
a tracker ends a training.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import tracking

from ldm.compute.state import Run, replace_json
from ldm.core import images
from ldm.training.history import PICTURES

Rows = Sequence[Mapping[str, float]]
FOLDER = "trackers"
"""Folder in that of all runs where trackers keep their files: they outlive the runs."""

_TOLD = "trackers.json"
_PROJECT = "ldm"
_INSTALLED_AS: dict[str, str] = {"dvclive": '"ldm[trackers]"', "tensorboard": '"ldm[trackers]"'}


class Trackers:
    """The trackers of one run. Only the main process has them."""

    def __init__(self, kinds: Iterable[str], run: Run) -> None:
        """Open them, each in the tracker's own run, which is new for a new run directory and continued otherwise."""
        self._run, self._file = run, run.directory / _TOLD
        self._told = self._read()
        self._open: dict[str, Any] = {}
        for kind in kinds:
            if find_spec(kind) is None:
                _warn(kind, f"not installed: pip install {_INSTALLED_AS.get(kind, kind)}")
            else:
                self._guard(kind, self._start)

    def tell(self, tables: Mapping[str, Rows]) -> None:
        """Pass on what is new: rows of the tables, by group and name such as training/loss, and pictures of the run.

        tables: group -> rows, each with its `step`; they may have been told.
        """
        for kind in list(self._open):
            self._guard(kind, lambda kind: self._tell(kind, tables))

    def close(self) -> None:
        """Let the trackers finish what they write."""
        for kind in list(self._open):
            self._guard(kind, lambda kind: self._open.pop(kind).finish())

    def _read(self) -> dict[str, Any]:
        """What was told; as of a new run, if nothing says it, or if what says it is damaged."""
        try:
            return json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {"run": f"{datetime.now():%Y-%m-%d-%H%M%S}-{self._run.directory.name[:6]}"}

    def _guard(self, kind: str, act: Callable[[str], None]) -> None:
        """Act; a tracker that fails is left out from then on."""
        try:
            act(kind)
        except Exception as error:
            self._open.pop(kind, None)
            _warn(kind, f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _start(self, kind: str) -> None:
        stage, name = self._run.directory.parent.name, self._told["run"]
        folder = self._run.directory.parents[1] / FOLDER / kind
        (folder / stage).mkdir(parents=True, exist_ok=True)
        known: dict[str, Any] = self._told.setdefault(kind, {})
        tracker = _tracker(kind, folder.absolute(), stage, name, known)
        tracker.start()
        if kind == "mlflow":
            known["run_id"] = tracker.tracker.info.run_id
        if "told" not in known:
            _tell_params(tracker, {key: value for key, value in self._run.fingerprint.items() if "code." not in key})
            known["told"] = {}
        self._open[kind] = tracker
        self._keep()

    def _tell(self, kind: str, tables: Mapping[str, Rows]) -> None:
        tracker, told = self._open[kind], self._told[kind]["told"]
        for step, values in _since(told, tables):
            tracker.log(values, step=step)
        # A training that goes on from an older state is behind what was told.
        told |= {group: max(int(rows[-1]["step"]), told.get(group, 0)) for group, rows in tables.items() if rows}
        for path in sorted(self._run.directory.glob(PICTURES)):
            step = int(path.stem.rpartition("-")[2])
            if step > told.get("pictures", 0):
                _tell_picture(tracker, path, step)
                told["pictures"] = step
        self._keep()

    def _keep(self) -> None:
        replace_json(self._file, self._told)


def _since(told: Mapping[str, int], tables: Mapping[str, Rows]) -> list[tuple[int, dict[str, float]]]:
    """Steps with the values that were not told, in the order of steps."""
    found: dict[int, dict[str, float]] = {}
    for group, rows in tables.items():
        for row in rows:
            if (step := int(row["step"])) > told.get(group, 0):
                values = {f"{group}/{name}": value for name, value in row.items() if name != "step"}
                found[step] = {**found.get(step, {}), **values}
    return sorted(found.items())


def _tracker(kind: str, folder: Path, stage: str, name: str, known: Mapping[str, Any]) -> Any:
    """One of accelerate's trackers, not yet started. known: what is kept of its run."""
    match kind:
        case "tensorboard":
            return tracking.TensorBoardTracker(name, folder / stage)
        case "dvclive":
            quiet: dict[str, Any] = {"save_dvc_exp": False, "dvcyaml": None, "report": None}
            return tracking.DVCLiveTracker(dir=str(folder / stage / name), resume=True, **quiet)
        case "wandb":
            where = {"dir": folder, "id": f"{stage}-{name}", "name": name, "group": stage, "resume": "allow"}
            return tracking.WandBTracker(_PROJECT, **where)
        case _:
            os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            return tracking.MLflowTracker(stage, folder.as_uri(), run_id=known.get("run_id"), run_name=name)


def _tell_params(tracker: Any, made_by: Mapping[str, Any]) -> None:
    """Pass on what the run is made by."""
    if tracker.name == "tensorboard":  # its table of parameters would be a run of its own
        lines = [f"    {key}: {value}" for key, value in made_by.items()]
        tracker.tracker.add_text("made by", "\n".join(lines))
    else:
        tracker.store_init_configuration({key: _plain(value) for key, value in made_by.items()})


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else json.dumps(value)


def _tell_picture(tracker: Any, path: Path, step: int) -> None:
    match tracker.name:
        case "tensorboard":
            pixels = images.decode_png(path.read_bytes())
            tracker.tracker.add_image("picture", pixels, global_step=step, dataformats="HWC")
        case "dvclive":
            tracker.tracker.log_image(f"picture/{step}.png", path)
        case "wandb":
            tracker.log_images({"picture": [images.decode_png(path.read_bytes())]}, step=step)
        case _:
            tracker.log_artifact(str(path), "pictures")


def _warn(kind: str, what: str) -> None:
    print(f"tracker {kind}: {what}; the training goes on without it (machine.trackers)", file=sys.stderr, flush=True)
