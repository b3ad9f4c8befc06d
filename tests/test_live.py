"""What a training shows while it runs; showing it changes no weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.core.errors import Stopped
from ldm.training import live
from ldm.training.bands import Window, write
from ldm.training.history import CURVES, PACE, VALIDATION
from ldm.training.live import Live
from ldm.training.pace import Pace
from ldm.training.plots import read_table
from tests.toy_training import Batches, params, run_toy


class Looking(Batches):
    """Batches that look into the run directory first, as somebody does who watches."""

    def __init__(self, root: Path) -> None:
        super().__init__(params())
        self._root, self.seen = root, dict[int, dict[str, list[float]]]()

    def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
        tables = {path.name: path for path in self._root.glob("toy/*/*.csv")}
        self.seen[step] = {name: [at for at, _ in read_table(path).get("loss", [])] for name, path in tables.items()}
        if PACE in tables:
            self.seen[step][PACE] = [at for at, _ in read_table(tables[PACE])["samples_per_second"]]
        return super().__call__(step, rows)


def test_every_row_is_on_the_disk_before_the_next_step(tmp_path: Path):
    batches = Looking(tmp_path)
    run_toy(tmp_path, params(), batches=batches)
    assert batches.seen[2] == {}
    assert batches.seen[3] == {CURVES: [3], VALIDATION: [], PACE: [3]}
    assert batches.seen[10] == {CURVES: [3, 6, 9], VALIDATION: [10], PACE: [3, 6, 9]}
    assert batches.seen[19] == {CURVES: [3, 6, 9, 12, 15, 18], VALIDATION: [10], PACE: [3, 6, 9, 12, 15, 18]}


def test_speeds_count_the_updates_since_the_training_went_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counts: list[tuple[int, int]] = []

    def row(pace: Pace, step: int, num_updates: int) -> dict[str, float]:
        counts.append((step, num_updates))
        return {"step": step}

    monkeypatch.setattr(Pace, "row", row)
    with pytest.raises(Stopped):
        run_toy(tmp_path, params(), kill_at=7)
    run_toy(tmp_path, params())
    assert counts == [(3, 3), (6, 3), (9, 1), (12, 3), (15, 3), (18, 3), (20, 2)]


def banded(tmp_path: Path, *windows: tuple[int, float, float]) -> str:
    """The path of a file with such windows of the toy."""
    path = tmp_path / "band.csv"
    write(path, [Window("toy", *window) for window in windows])
    return str(path)


def test_a_loss_that_leaves_its_band_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Steps 3 to 9 are within, 12 and 15 without, 18 within, and 20 without again."""
    path = banded(tmp_path, (9, 0.0, 9.0), (16, 0.0, 1e-3), (18, 0.0, 9.0), (20, 5.0, 9.0))
    _, plain = run_toy(tmp_path / "plain", params())
    assert "band" not in capsys.readouterr().out
    _, history = run_toy(tmp_path / "banded", params(loss_band=path))
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    losses = {row["step"]: row["loss"] for row in history.training}
    because = f"as in the known run of {path}; if data or params are others, set loss_band: null"
    assert lines == [
        f"toy: loss {losses[12]:.4g} at step 12 is not in 0 to 0.001, {because}",
        f"toy: loss {losses[20]:.4g} at step 20 is not in 5 to 9, {because}",
    ]
    assert history == plain, "it goes on as without"


def test_a_training_that_goes_on_does_not_tell_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chosen = params(loss_band=banded(tmp_path, (20, 0.0, 1e-3)))
    with pytest.raises(Stopped):
        run_toy(tmp_path, chosen, kill_at=7)
    assert capsys.readouterr().out.count("is not in") == 1
    run_toy(tmp_path, chosen)
    assert "is not in" not in capsys.readouterr().out


def test_a_band_that_is_not_there_is_said_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, history = run_toy(tmp_path, params(loss_band="nowhere.csv"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("toy: training.loss_band: nowhere.csv: not read ([Errno 2]")
    assert lines[2] == "the training goes on without it" and history.training[-1]["step"] == 20


def test_other_processes_show_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A process that is not the first writes no table, and opens no tracker."""
    whole, _ = run_toy(tmp_path / "shown", params())

    class Other(Live):
        def __init__(self, *args: Any, step: int, is_shown: bool) -> None:
            super().__init__(*args, step=step, is_shown=False)

    monkeypatch.setattr("ldm.training.loop.Live", Other)
    monkeypatch.setattr(live.plots, "write_table", lambda *_: pytest.fail("it wrote a table"))
    toy, _ = run_toy(tmp_path / "hidden", params())
    assert all(torch.equal(value, toy.state_dict()[name]) for name, value in whole.state_dict().items())
