"""`ldm watch` and `ldm band`, over run directories as trainings leave them."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.compute.state import Run
from ldm.core.params import PathsParams
from ldm.tools import cli, watch
from ldm.tools.check.sections import SECTIONS
from ldm.tools.cli import watch as verbs
from ldm.training.bands import read
from ldm.training.plots import write_table
from tests.import_closure import ROOT


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_RUNS", raising=False)
    shutil.copy(ROOT / "paths.yaml", tmp_path)


def training(stage: str, last: int, num_steps: int = 100) -> Run:
    """An open run with a row every 10 steps, which took 4 s each, the validation between them included."""
    run = Run(Path("runs"), stage, {"params.training.num_steps": num_steps})
    run.open()
    log(run, last)
    return run


def log(run: Run, last: int) -> None:
    steps = range(10, last + 1, 10)
    write_table(run.directory / "curves.csv", [{"step": step, "loss": 20 / step, "grad_norm": 0.5} for step in steps])
    write_table(run.directory / "validation.csv", [{"step": step, "loss": 21 / step} for step in steps if step == 20])
    speeds = {"samples_per_second": 64.0, "data_wait": 0.25, "memory_gb": 1.5}
    write_table(run.directory / "pace.csv", [{"step": step, **speeds, "seconds": 0.4 * step} for step in steps])


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert cli.main(["watch", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_training_can_be_watched():
    trainings = tuple(name for name in SECTIONS if name.startswith("train_"))
    assert tuple(verbs.RESULTS) == trainings
    assert set(verbs.RESULTS.values()) < set(PathsParams.model_fields)


def test_a_training_that_runs(capsys: pytest.CaptureFixture[str]):
    training("train_autoencoder", 90).close()
    run = training("train_unet", 40)
    for step in (20, 40):
        (run.directory / f"picture-{step:09d}.png").touch()
    lines = said(capsys, "--once")
    speed = "64 samples/s, 25% of the time waiting for data, 1.50 GB"
    assert lines[0] == f"train_unet: step 40 of 100, loss 0.5, {speed}, 24 s left", "60 steps at 0.4 s"
    assert lines[1:6] == [
        "",
        "loss curve",
        "step    loss  grad_norm",
        "  10       2        0.5",
        "  20       1        0.5",
    ]
    assert lines[6:] == [
        "  30  0.6667        0.5",
        "  40     0.5        0.5",
        *("", "validation", "step  loss", "  20  1.05", ""),
        f"newest picture: {run.directory}/picture-000000040.png",
        f"all of it: {run.directory}",
        "",
    ]
    run.close()


def test_all_that_run_are_shown_else_the_newest_of_what_is_left(capsys: pytest.CaptureFixture[str]):
    assert said(capsys, "--once") == ["no training in runs"]
    both = [training("train_clip", 30), training("train_autoencoder", 20)]
    heads = [line for line in said(capsys, "--once") if ": step" in line]
    assert [head.partition(",")[0] for head in heads] == [
        "train_clip: step 30 of 100",
        "train_autoencoder: step 20 of 100",
    ]
    assert said(capsys, "train_clip", "--once")[0].startswith("train_clip")
    for run in both:
        run.close()
    (both[1].directory / "step-000000020").mkdir()
    assert said(capsys, "--once")[0] == "train_autoencoder: step 20 of 100, not running; saved as step-000000020"


def test_one_that_ends_just_now_hides_no_other(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    ending, other = training("train_clip", 30), training("train_unet", 20)
    read = watch.Training.of

    def of(directory: Path) -> watch.Training:
        if directory == ending.directory:
            raise FileNotFoundError(directory)
        return read(directory)

    monkeypatch.setattr(watch.Training, "of", of)
    assert said(capsys, "--once")[0].startswith("train_unet: step 20 of 100")
    ending.close()
    other.close()


def test_a_damaged_run_and_a_cut_row_hide_nothing_else(capsys: pytest.CaptureFixture[str]):
    torn, other = training("train_clip", 30), training("train_unet", 20)
    (torn.directory / "fingerprint.json").write_text("")
    (other.directory / "step-000000020.bak").mkdir()
    for name in ("curves.csv", "pace.csv"):
        path = other.directory / name
        path.write_text(path.read_text().removesuffix("\n").rpartition(",")[0])
    lines = said(capsys, "--once")
    assert lines[0].startswith("train_unet: step 10 of 100, loss 2, 64 samples/s")
    assert lines[-2].startswith(f"{torn.directory}/fingerprint.json: no JSON")
    assert lines[-1].endswith(f"rm -r {torn.directory}")
    torn.close()
    other.close()
    assert said(capsys, "--once")[0] == "train_unet: step 10 of 100, not running; nothing is saved"
    assert said(capsys, "train_clip", "--once")[0] == "no training in runs"


@pytest.mark.parametrize("name", ["curves.csv", "validation.csv", "pace.csv"])
@pytest.mark.parametrize("row", [b"20,\xff,1\n", b"20,x,1\n", b"20\n", b"20,1,1,1,1,1,1\n", b"x,1,1,1,1\n", b"\0\n"])
def test_a_damaged_table_is_said_and_hides_no_other_run(
    capsys: pytest.CaptureFixture[str], name: str, row: bytes
) -> None:
    damaged, other = training("train_clip", 30), training("train_unet", 20)
    path = damaged.directory / name
    path.write_bytes(path.read_bytes() + row)
    lines = said(capsys, "--once")
    assert lines[0].startswith("train_unet: step 20 of 100")
    assert lines[-2].startswith(f"{path}: ") and lines[-2].endswith("; expected the table that a training wrote")
    assert lines[-1].startswith("fix: ") and lines[-1].endswith(f"rm {path}")
    damaged.close()
    other.close()


def test_ctrl_c_while_it_reads_is_as_polite(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "trainings", interrupted)
    assert cli.main(["watch"]) == 0
    assert capsys.readouterr().err == "\nno longer watched; a training goes on\n"


def test_one_that_has_just_begun_has_no_row_yet(capsys: pytest.CaptureFixture[str]):
    run = Run(Path("runs"), "train_unet", {"params.training.num_steps": 100})
    run.open()
    assert said(capsys, "--once") == ["train_unet: step 0 of 100", "", f"all of it: {run.directory}", ""]
    run.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A training that logs a row between two looks, ends after the second row, and then the user does, too."""
    run = training("train_unet", 10)
    happens = iter(["row", "nothing", "row", "end", "Ctrl-C"])

    def sleep(seconds: float) -> None:
        assert seconds == 0.5
        match next(happens):
            case "row":
                log(run, 10 + len((run.directory / "curves.csv").read_text().splitlines()) * 10 - 10)
            case "end":
                run.remove()
            case "Ctrl-C":
                raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", sleep)
    yield run
    run.close()


def test_new_rows_are_new_lines_until_ctrl_c(looks: Run, capsys: pytest.CaptureFixture[str]):
    lines = said(capsys, "--every", "0.5")
    assert [line.partition(", 64")[0] for line in lines if ": step" in line] == [
        "train_unet: step 10 of 100, loss 2",
        "train_unet: step 20 of 100, loss 1",
        "train_unet: step 30 of 100, loss 0.6667",
    ]
    assert lines[-1] == "no training in runs" and lines.count("loss curve") == 1


def test_a_terminal_shows_all_anew(looks: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["watch", "--every", "0.5"]) == 0
    out, errors = capsys.readouterr()
    assert out.count("\x1b[H\x1b[2J") == 4 and out.count("loss curve") == 3
    assert errors == "\nno longer watched; a training goes on\n"


@pytest.mark.parametrize("arguments", [["--every", "0"], ["--every", "soon"], ["prepare"]])
def test_bad_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(["watch", *arguments])
    assert caught.value.code == 2 and "ldm watch: error: argument" in capsys.readouterr().err


def test_a_band_is_written_of_the_results_and_never_over_a_file(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["band", "band.csv"]) == 2
    assert "no curve of a training; expected one of data/autoencoder_results/curves.csv" in capsys.readouterr().err
    results = Path("data/unet_results")
    results.mkdir(parents=True)
    write_table(results / "curves.csv", [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}])
    assert cli.main(["band", "band.csv"]) == 0
    assert capsys.readouterr().out == "band.csv: train_unet\n"
    assert [window.up_to_step for window in read(Path("band.csv"), "train_unet")] == [10, 20]
    assert cli.main(["band", "band.csv"]) == 2
    assert (
        "a file that exists already; expected a new one\nfix: name another, or add --overwrite"
        in capsys.readouterr().err
    )
    assert Path("band.csv").read_text().count("train_unet") == 2
    write_table(results / "curves.csv", [{"step": 10, "loss": 2.0}])
    assert cli.main(["band", "band.csv", "--overwrite"]) == 0
    assert Path("band.csv").read_text().count("train_unet") == 1
    assert cli.main(["band", "nowhere/band.csv"]) == 2 and "fix: make the folder" in capsys.readouterr().err
