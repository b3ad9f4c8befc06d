"""Bands of the losses of known runs: what they are made of, when a loss has left one, and those that recipes ship."""

import errno
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ldm.core.errors import ConfigError, IntegrityError
from ldm.tools.recipe import Recipe, names
from ldm.training import bands
from ldm.training.bands import Window
from ldm.training.plots import write_table
from tests.import_closure import ROOT

STAGES = {
    "train_autoencoder": ("source", "training"),
    "train_clip": ("source", "training"),
    "train_unet": ("training",),
}


def test_a_run_is_in_its_own_band_and_one_that_stands_still_is_not(tmp_path: Path):
    rows = [{"step": step, "loss": 4 / math.sqrt(step)} for step in range(10, 641, 10)]
    write_table(tmp_path / "curves.csv", rows)
    windows = bands.of_run("train_unet", tmp_path / "curves.csv")
    assert [window.up_to_step for window in windows] == [20, 40, 80, 160, 320, 640]
    assert windows[-1] == Window(
        "train_unet", 640, pytest.approx(4 / 640**0.5 * 0.85), pytest.approx(4 / 330**0.5 * 1.15)
    )
    assert not any(bands.is_outside(windows, row) for row in rows)
    assert not bands.is_outside(windows, {"step": 700, "loss": 9.0}), "nothing is known of a longer training"
    still = [bands.is_outside(windows, {"step": row["step"], "loss": rows[0]["loss"]}) for row in rows]
    assert still == [row["step"] > 20 for row in rows]
    assert bands.is_outside(windows, {"step": 640, "loss": 0.01}) and bands.is_outside(
        windows, {"step": 1, "loss": math.nan}
    )


def test_negative_losses_have_bands_too(tmp_path: Path):
    write_table(tmp_path / "curves.csv", [{"step": 32, "loss": -1.0}])
    (window,) = bands.of_run("a", tmp_path / "curves.csv")
    assert (window.least, window.greatest) == pytest.approx((-1.15, -0.85))
    write_table(tmp_path / "none.csv", [])
    assert bands.of_run("a", tmp_path / "none.csv") == []


@pytest.mark.parametrize("cell", ["0.5x", "-", "0,5"])
def test_a_curve_with_a_cell_that_is_no_number_is_refused(tmp_path: Path, cell: str):
    (tmp_path / "curves.csv").write_text(f"step,loss\n1,2.0\n2,{cell}\n")
    with pytest.raises(IntegrityError, match=r"curves\.csv: \w+Error: .*\nfix: run `dvc checkout`"):
        bands.of_run("a", tmp_path / "curves.csv")


def test_files_round_trip_and_bad_ones_are_named(tmp_path: Path):
    windows = [Window("a", 5, -0.5, 1.25), Window("b", 5, 0.0, 2.0)]
    bands.write(tmp_path / "band.csv", windows)
    assert bands.read(tmp_path / "band.csv", "a") == windows[:1] and bands.read(tmp_path / "band.csv", "c") == []
    for name, text in {
        "missing": None,
        "columns": "x,y\n1,2\n",
        "text": "stage,up_to_step,least,greatest\na,b,c,d\n",
    }.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(
            ConfigError, match=rf"^a: training\.loss_band: .*{name}: not read .*columns stage, up_to_step"
        ):
            bands.read(tmp_path / name, "a")


def test_a_full_disk_leaves_the_band_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def cut(path: Path, rows: object) -> None:
        path.write_text("stage,up_to")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, windows = tmp_path / "band.csv", [Window("a", 5, -0.5, 1.25)]
    bands.write(path, windows)
    monkeypatch.setattr(bands, "write_rows", cut)
    with pytest.raises(OSError, match="No space left"):
        bands.write(path, [])
    assert bands.read(path, "a") == windows and list(tmp_path.iterdir()) == [path]


@cache
def default_data() -> dict[str, Any]:
    return Recipe("default", ROOT).data


@pytest.mark.parametrize("name", names(ROOT))
def test_bands_of_recipes_are_there_and_of_their_length(name: str):
    """A recipe that changes a training has a band of its own, or none: never the default's."""
    data = Recipe(name, ROOT).data
    default = default_data()
    for stage, keys in STAGES.items():
        training, of_default = data[stage], default[stage]
        for key in keys:
            training, of_default = (training or {}).get(key), of_default[key]
        if not training or training["loss_band"] is None:
            continue
        windows = bands.read(ROOT / training["loss_band"], stage)
        assert [window.up_to_step for window in windows][-1] == training["num_steps"]
        assert all(window.least < window.greatest for window in windows)
        is_same = data[stage] == default[stage] and data["prepare"] == default["prepare"]
        assert is_same == (training["loss_band"] == of_default["loss_band"]), f"{name}: {stage}"
