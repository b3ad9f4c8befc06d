"""Trackers: each row and picture once, whatever happens to the training, and no weight changes."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from ldm.core.params import MachineParams
from ldm.training import trackers
from ldm.training.history import CURVES
from ldm.training.plots import read_table
from tests.import_closure import ROOT
from tests.toy_training import Batches, params, run_toy
from tests.training_data import KEPT

Run = Callable[..., Any]


def machine(*kinds: str) -> MachineParams:
    """Run directories are kept, so that a test can look at them."""
    values = KEPT | {"keep_finished_states": True, "trackers": list(kinds)}
    return MachineParams(threads=1, num_workers=0, attention="math", compile=False, **values)


def picture(objective: nn.Module) -> Image.Image:
    """A colour that is another one after every step."""
    return Image.new("RGB", (3, 2), (int(objective.get_buffer("num_seen")), 0, 0))


class Breaking(Batches):
    """The power fails while the batch of step 16 is drawn: nothing can be saved then. Step 15 was logged, 14 saved."""

    def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
        if step == 16:
            raise ConnectionError("the power failed")
        return super().__call__(step, rows)


def broken_and_finished(root: Path, *kinds: str) -> nn.Module:
    """The toy after a training that was broken off, and done."""
    with pytest.raises(ConnectionError):
        run_toy(root, params(), batches=Breaking(params()), machine=machine(*kinds), picture=picture)
    return run_toy(root, params(), machine=machine(*kinds), picture=picture)[0]


def points(root: Path, table: str = CURVES) -> dict[str, list[tuple[float, float]]]:
    (path,) = root.glob(f"toy/*/{table}")
    return read_table(path)


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A run with TensorBoard and dvclive that was broken off, and its toy."""
    root = tmp_path_factory.mktemp("tracked")
    return root, broken_and_finished(root, "tensorboard", "dvclive")


def test_weights_are_those_of_a_run_without(tracked: tuple[Path, nn.Module], tmp_path: Path):
    root, toy = tracked
    plain, _ = run_toy(tmp_path, params(), machine=machine(), picture=picture)
    assert all(torch.equal(value, toy.state_dict()[name]) for name, value in plain.state_dict().items())
    assert points(root) == points(tmp_path)
    assert not (tmp_path / "trackers").exists(), "none by default"


def test_tensorboard_has_the_rows_of_the_curves_and_the_pictures(tracked: tuple[Path, nn.Module]):
    root, _ = tracked
    events = EventAccumulator(str(only(root / "trackers/tensorboard/toy")))
    events.Reload()
    for group, table in (("training", CURVES), ("validation", "validation.csv")):
        for name, expected in points(root, table).items():
            found = events.Scalars(f"{group}/{name}")
            assert [event.step for event in found] == [step for step, _ in expected], "none is missing, none is twice"
            assert [event.value for event in found] == pytest.approx([value for _, value in expected], rel=1e-6)
    speeds = [event.value for event in events.Scalars("machine/samples_per_second")]
    assert len(speeds) == 7 and min(speeds) > 0
    assert {f"machine/{name}" for name in ("data_wait", "memory_gb", "seconds")} < set(events.Tags()["scalars"])
    shown = events.Images("picture")
    assert [event.step for event in shown] == [10, 20]
    for event in shown:
        pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        assert pixels.shape == (2, 3, 3) and pixels[0, 0].tolist() == [event.step, 0, 0]


def test_dvclive_has_the_rows_of_the_curves_and_the_pictures(tracked: tuple[Path, nn.Module]):
    root, _ = tracked
    plots = only(root / "trackers/dvclive/toy") / "plots"
    for group, table in (("training", CURVES), ("validation", "validation.csv")):
        for name, expected in points(root, table).items():
            rows = csv.DictReader((plots / f"metrics/{group}/{name}.tsv").open(), delimiter="\t")
            found = [(float(row["step"]), float(f"{float(row[name]):.9g}")) for row in rows]
            assert found == expected
    assert sorted(path.name for path in (plots / "images/picture").iterdir()) == ["10.png", "20.png"]


class Recorder:
    """A tracker in memory."""

    name = "dvclive"

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.params: list[Mapping[str, Any]] = []
        self.is_finished = False
        self.tracker = self

    def start(self) -> None:
        """As a tracker of accelerate."""

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.params.append(values)

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def log_image(self, name: str, path: Path) -> None:
        self.rows.append((int(Path(name).stem), {name: 0.0}))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Stands for every tracker, each of which is installed."""
    recorder = Recorder()
    monkeypatch.setattr(trackers, "_tracker", lambda *_: recorder)
    monkeypatch.setattr(trackers, "find_spec", lambda _: True)
    return recorder


def test_one_that_comes_later_gets_all_rows_in_the_order_of_steps(tmp_path: Path, recorder: Recorder):
    with pytest.raises(ConnectionError):
        run_toy(tmp_path, params(), batches=Breaking(params()), machine=machine(), picture=picture)
    run_toy(tmp_path, params(), machine=machine("wandb"), picture=picture)
    steps = [step for step, values in recorder.rows if "training/loss" in values]
    assert steps == [3, 6, 9, 12, 15, 18, 20]
    assert [step for step, values in recorder.rows if "validation/loss" in values] == [10, 20]
    assert recorder.is_finished and len(recorder.params) == 1
    assert recorder.params[0]["params.betas"] == "[0.9, 0.99]" and recorder.params[0]["params.num_steps"] == 20
    loss = next(values for step, values in recorder.rows if step == 12)["training/loss"]
    assert float(f"{loss:.9g}") == dict(points(tmp_path)["loss"])[12]


def test_rows_that_are_computed_again_are_not_told_again(tmp_path: Path, recorder: Recorder):
    """Five rows were told, and the first of them alone is saved."""
    seldom = {"save_every_steps": 4, "num_kept_states": 9}
    with pytest.raises(ConnectionError):
        run_toy(tmp_path, params(**seldom), batches=Breaking(params(**seldom)), machine=machine("wandb"))
    for state in sorted(tmp_path.glob("toy/*/step-*"))[1:]:
        shutil.rmtree(state)
    run_toy(tmp_path, params(**seldom), machine=machine("wandb"))
    assert [step for step, values in recorder.rows if "training/loss" in values] == [3, 6, 9, 12, 15, 18, 20]


def test_another_run_directory_is_another_run_of_the_tracker(tmp_path: Path, recorder: Recorder):
    for seed in (0, 1):
        run_toy(tmp_path, params(seed=seed), machine=machine("wandb"))
    told = [json.loads(path.read_text()) for path in tmp_path.glob("toy/*/trackers.json")]
    assert len(told) == len({each["run"] for each in told}) == 2
    assert [step for step, values in recorder.rows if "training/loss" in values] == 2 * [3, 6, 9, 12, 15, 18, 20]


def test_runs_of_wandb_and_mlflow_are_gone_on_with_and_stay_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What accelerate's trackers are made with; they were tried with wandb 0.31 (offline) and mlflow 3.18."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    wandb = trackers._tracker("wandb", tmp_path, "train_unet", "now", {})
    settings = {"dir": tmp_path, "id": "train_unet-now", "name": "now", "group": "train_unet", "resume": "allow"}
    assert wandb.run_name == "ldm" and wandb.init_kwargs == settings
    mlflow = trackers._tracker("mlflow", tmp_path, "train_unet", "now", {"run_id": "abc"})
    assert (mlflow.experiment_name, mlflow.run_id, mlflow.run_name) == ("train_unet", "abc", "now")
    assert mlflow.logging_dir == tmp_path.as_uri()
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("failing", ["start", "log", "log_image", "finish"])
def test_one_that_fails_is_one_line_and_no_end(
    tmp_path: Path, recorder: Recorder, failing: str, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    setattr(recorder, failing, fail)
    _, history = run_toy(tmp_path, params(), machine=machine("wandb"), picture=picture)
    assert history.training[-1]["step"] == 20
    errors = capsys.readouterr().err
    line = "tracker wandb: OSError: no route to host; the training goes on without it (machine.trackers)"
    assert [each for each in errors.splitlines() if each.startswith("tracker")] == [line]


def test_a_damaged_note_of_what_was_told_ends_no_training(tmp_path: Path, recorder: Recorder):
    with pytest.raises(ConnectionError):
        run_toy(tmp_path, params(), batches=Breaking(params()), machine=machine("wandb"))
    (note,) = tmp_path.glob("toy/*/trackers.json")
    note.write_bytes(b"")
    _, history = run_toy(tmp_path, params(), machine=machine("wandb"))
    assert history.training[-1]["step"] == 20 and json.loads(note.read_text())["wandb"]["told"]["training"] == 20


@pytest.mark.parametrize(
    ("kind", "package"), [("dvclive", '"ldm[trackers]"'), ("tensorboard", '"ldm[trackers]"'), ("wandb", "wandb")]
)
def test_the_way_to_install_one_is_that_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, package: str
):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    run_toy(tmp_path, params(), machine=machine(kind))
    assert f"tracker {kind}: not installed: pip install {package}; the" in capsys.readouterr().err
    page = (ROOT / "docs/watching.md").read_text()
    assert f"| `{kind}` | `pip install {package}`" in page


def test_one_that_is_not_installed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert util.find_spec("mlflow") is None, "the environment of the tests has none"
    run_toy(tmp_path, params(), machine=machine("mlflow"))
    assert "tracker mlflow: not installed: pip install mlflow; the training goes on" in capsys.readouterr().err
