"""`make gpu`: what it writes, and what is left when a part fails. CI runs the command itself, at the least size."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from ldm.core import config
from ldm.core.params import MachineParams
from tests.import_closure import ROOT
from tests.repository import Repository


def works(folder: Path, end: float, found: dict[str, Any]) -> None:
    (folder / "own").touch()
    found |= {"tests": 3, "failures": 0}


def fails(folder: Path, end: float, found: dict[str, Any]) -> None:
    found["train_step"] = {"tables": {"Steps": [{"network": "ours", "ms": 1.5}]}, "ratios": {"train_step": [1.2, 1, 2]}}
    raise OSError(f"no room in {folder}/x of {ROOT}")


def test_what_a_part_found_before_it_failed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "__name__", "tests")
    monkeypatch.setattr(fails, "__name__", "benchmarks")
    written: list[set[str]] = []
    result = gpu.measure(tmp_path, ((works, fails),), 60, lambda found: written.append({*found["seconds"]}))
    assert len(written) == 2 and len(written[0]) == 2 and written[1] == {"tests", "benchmarks", "all"}
    assert json.loads(json.dumps(result)) == result
    assert result["tests"] == {"tests": 3, "failures": 0} and set(result["seconds"]) == {"tests", "benchmarks", "all"}
    told = result["failed"]["benchmarks"]
    assert told.startswith("OSError: no room in") and str(tmp_path) not in told and str(ROOT) not in told
    page = gpu.tables(result)
    assert "**benchmarks failed**: OSError: no room" in page
    assert "| ours | 1.5 |" in page and "| `train_step` | 1.2 (1 to 2) |" in page and "| 3 | 0 |" in page


@pytest.mark.parametrize("is_alone", [True, False], ids=["to the command", "to all"])
def test_what_was_found_before_ctrl_c_is_written(tmp_path: Path, is_alone: bool) -> None:
    def ended(folder: Path, end: float, found: dict[str, Any]) -> None:
        found["many"] = {"tables": {}, "ratios": {"many_images_seconds": 42.0}}
        while not written:
            time.sleep(0.01)
        if not is_alone:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # a command takes a while to end
        raise KeyboardInterrupt

    written: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            gpu.measure(tmp_path, ((ended, works), (fails,)), 60, lambda found: written.append(json.dumps(found)))
    finally:
        signal.signal(signal.SIGINT, before)
    result = json.loads(written[-1])
    assert set(result["ended"]) == {"many"} and result["failed"] == {"ended": gpu.CTRL_C}
    assert result["works"] and set(result["seconds"]) == {"ended", "works", "all"}, "no group after it"


def test_the_page_shows_targets_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "IS_SMALL", False)
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cuda"))
    many = {"tables": {}, "ratios": {"many_images_seconds": 42.0, "train_step_sd1_32": [1.4, 1.3, 1.5]}}
    machine = {"device": "Card X", "commit": "0", "torch": "2"}
    recipe = {"recipe": "default", "seconds": {}, "trainings": {}, "scores": {}, "ratios": {"data_wait": 0.05}}
    result = {"machine": machine, "seconds": {"all": 7}, "failed": {}, "benchmarks": {"many": many}}
    text = gpu.tables(result | {"recipes": recipe})
    assert text.startswith("Card X, commit 0, torch 2; 7 seconds.")
    lines = {line.split(" | ")[0]: line for line in text.splitlines()[::-1]}  # the first table
    assert "| 42 | reached |" in lines["| `many_images_seconds`"] and "| 0.05 | missed |" in lines["| `data_wait`"]
    assert "above the floor" in lines["| `train_step_sd1_32`"] and "not measured" in lines["| `train_step_sd1_64`"]
    whole = gpu.page.rewritten(gpu.PAGE.read_text(encoding="utf-8"), "gpu", text)
    assert text in whole and "make gpu" in whole


def test_a_command_that_takes_too_long_is_asked_to_stop_then_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background would ignore it
    writes = """
import time
try:
    open("ready", "w").close()
    time.sleep(600)
except KeyboardInterrupt: open("written", "w").close()
"""
    with pytest.raises(TimeoutError):
        gpu._run(["-c", writes], tmp_path, end=time.monotonic() + 5)
    assert (tmp_path / "ready").exists() and (tmp_path / "written").exists()
    monkeypatch.setattr(gpu, "NUM_SECONDS_TO_STOP", 0.1)
    deaf, begin = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)", time.monotonic()
    with pytest.raises(TimeoutError):
        gpu._run(["-c", deaf], tmp_path, end=begin + 5)
    assert time.monotonic() - begin < 300, "killed"
    with pytest.raises(KeyboardInterrupt):
        gpu._run(["-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"], tmp_path, end=float("inf"))
    signal.signal(signal.SIGINT, before)
    with pytest.raises(RuntimeError, match="exit code 3"):
        gpu._run(["-c", "raise SystemExit(3)"], tmp_path, end=float("inf"))


def test_commands_leave_the_runs_that_the_user_shares_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_RUNS", str(tmp_path / "shared"))
    tells = "import os; raise SystemExit('LDM_RUNS' in os.environ)"
    gpu._run(["-c", tells], tmp_path, end=float("inf"))
    assert Repository.at(tmp_path).run(sys.executable, "-c", tells) == ""


@pytest.mark.parametrize(("is_small", "name"), [(True, "tiny"), (False, "default")])
def test_recipes_are_run_with_runs_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_small: bool, name: str
) -> None:
    monkeypatch.setattr(gpu, "IS_SMALL", is_small)
    gpu._write_params(tmp_path, name)
    machine = config.read(MachineParams, "machine", tmp_path / config.PARAMS)
    assert machine.keep_finished_states
    assert (tmp_path / config.PATHS).read_text() == (ROOT / config.PATHS).read_text()


def test_speeds_are_those_after_the_first_row(tmp_path: Path) -> None:
    table = tmp_path / "pace.csv"
    rows = [(5, 1, 0.9, 1), (10, 8, 0.1, 2), (15, 10, 0.2, 2), (20, 9, 0.3, 3)]
    lines = [",".join(map(str, row)) for row in rows]
    table.write_text("step,samples_per_second,data_wait,memory_gb\n" + "\n".join(lines))
    assert gpu._speeds(table) == {"samples_per_second": 9, "data_wait": 0.2, "memory_gb": 2}
    table.write_text("step,samples_per_second,data_wait,memory_gb\n5,1,1,1\n")
    assert gpu._speeds(table) == {}


def test_tests_with_the_mark_are_found_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], where: Path, end: float, *, is_checked: bool) -> None:
        asked.append(command)
        counts = 'tests="4" failures="1" errors="0" skipped="2"'
        (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite {counts}/></testsuites>")

    def late(command: list[str], where: Path, end: float, *, is_checked: bool) -> None:
        run(command, where, end, is_checked=is_checked)
        raise TimeoutError("pytest")

    monkeypatch.setattr(gpu, "_run", run)
    found: dict[str, Any] = {}
    with pytest.raises(RuntimeError, match="a test failed"):
        gpu.tests(tmp_path, 0.0, found)
    assert found == {"tests": 4, "failures": 1, "errors": 0, "skipped": 2}
    monkeypatch.setattr(gpu, "_run", late)
    written: dict[str, Any] = {}
    with pytest.raises(TimeoutError):
        gpu.tests(tmp_path, 0.0, written)
    assert written == found, "what was done in time"
    assert str(ROOT / "tests/test_gpu_training.py") in asked[0] and sys.executable not in asked[0]


def test_a_benchmark_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], where: Path, end: float) -> None:
        name = command[1].removeprefix("benchmarks.")
        if name == gpu.BENCHMARKS[0]:
            raise RuntimeError(name)
        path = tmp_path / gpu.DEVICE.type / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"tables": {}, "ratios": {"x": 1}}')

    monkeypatch.setattr(gpu, "_run", run)
    found: dict[str, Any] = {}
    with pytest.raises(RuntimeError, match=gpu.BENCHMARKS[0]):
        gpu.benchmarks(tmp_path, 0.0, found)
    assert list(found) == list(gpu.BENCHMARKS[1:])
