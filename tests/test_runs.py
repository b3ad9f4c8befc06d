"""`ldm runs` and `ldm resume` in a folder of runs of several stages, under params and code that change."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.compute import fingerprint
from ldm.compute.saved import State
from ldm.compute.state import Run
from ldm.core import config
from ldm.corpora import units as prepared
from ldm.corpora.params import PrepareParams
from ldm.tools import cli
from ldm.tools.check import check
from tests.import_closure import ROOT
from tests.repository import params_of, setting

PATH = Path("params.yaml")


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params and code, of which a UNet training was stopped after 20 and 41 steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(setting(train_unet__training__num_steps=80)(params_of("tiny")))
    shutil.copy(ROOT / "paths.yaml", tmp_path)
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    shutil.copytree(ROOT / "ldm", tmp_path / "ldm", ignore=shutil.ignore_patterns("__pycache__"))
    save("train_unet", 20, 41)
    return tmp_path


def made_by(stage: str) -> dict[str, Any]:
    section = config.read(check.SECTIONS[stage], stage)
    return fingerprint.of(f"stages/{stage}.py", section, {"latents_train": "a" * 64})


def save(stage: str, *steps: int) -> Run:
    """A run of a stage as params and code are now, with states after some steps, which nobody works in."""
    run = Run(Path("runs"), stage, made_by(stage))
    run.open()
    for step in steps:
        run.commit(State(step, {"w": torch.zeros(250_000)}, {}), num_kept=9)
    run.close()
    return run


def edit(**values: Any) -> None:
    PATH.write_text(setting(**values)(PATH.read_text()))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def test_states_are_listed_with_step_size_and_age(capsys: pytest.CaptureFixture[str]):
    run = next(Path("runs/train_unet").iterdir())
    then = time.time() - 3 * 3600 - 60
    os.utime(run / "step-000000041", (then, then))
    lines = said(capsys, "runs").splitlines()
    assert re.fullmatch(rf"train_unet/{run.name}/step-000000020  20 of 80 steps, 1.0 MB, \d+ seconds old", lines[0])
    assert lines[1] == f"train_unet/{run.name}/step-000000041  41 of 80 steps, 1.0 MB, 3 hours old"
    assert lines[2:] == ["  as params and code are now: the next run goes on from it by itself"]


def test_the_steps_of_a_clip_are_counted_too(capsys: pytest.CaptureFixture[str]):
    save("train_clip", 20, 40)
    found = re.findall(r"^train_clip/\w+/step-\d+  (.+), 1\.0 MB", said(capsys, "runs"), re.MULTILINE)
    assert found == ["20 of 40 steps", "finished, 40 steps"]


def test_what_differs_is_listed_with_both_values(capsys: pytest.CaptureFixture[str]):
    edit(train_unet__training__learning_rate=0.5, train_unet__training__save_every_steps=3)
    unet = Path("ldm/denoiser/model/unet.py")
    unet.write_text(unet.read_text() + "# a comment\n")
    lines = said(capsys, "runs").splitlines()
    assert lines[2:] == ["  differs: params.training.learning_rate: 0.001 -> 0.5"]
    unet.write_text(unet.read_text() + "SIZE = 3\n")
    lines = said(capsys, "runs").splitlines()
    assert len(lines) == 4 and re.match(r"  differs: code.ldm/denoiser/model/unet.py: \w{12} -> \w{12}", lines[3])


def test_finished_runs_units_and_runs_in_use_are_named(capsys: pytest.CaptureFixture[str]):
    edit(train_unet__training__num_steps=41)
    save("train_unet", 41)
    units = save("encode_latents")
    units.open()
    units.keep("a", {"w": torch.zeros(500_000)})
    text = said(capsys, "runs")
    assert re.search(r"step-000000041  finished, 41 steps, 1.0 MB", text)
    assert re.search(rf"encode_latents/{units.directory.name}  1 units of work, 2.0 MB", text)
    assert f"in use (pid {os.getpid()} on " in text
    units.close()
    assert "in use" not in said(capsys, "runs")


def test_nothing_saved_is_said(capsys: pytest.CaptureFixture[str]):
    shutil.rmtree("runs")
    assert said(capsys, "runs") == "nothing is saved\n"


def asked() -> str:
    return json.loads(Path("runs/train_unet/resume.json").read_text())["state"]


NAMES: list[tuple[Callable[[str], str], str]] = [
    (lambda run: f"train_unet/{run}/step-000000020", "step-000000020"),
    (lambda run: f"train_unet/{run[:4]}", "step-000000041"),
    (lambda run: run, "step-000000041"),
    (lambda run: run[:3], "step-000000041"),
    (lambda run: f"{run}/step-000000020", "step-000000020"),
    (lambda run: f"runs/train_unet/{run}", "step-000000041"),
    (lambda run: f"runs/train_unet/{run}/step-000000020/", "step-000000020"),
    (lambda run: str(Path(f"runs/train_unet/{run}/step-000000020").absolute()), "step-000000020"),
    (lambda run: "train_unet", "step-000000041"),
]


@pytest.mark.parametrize(("name", "step"), NAMES)
def test_a_state_is_named_as_it_is_listed(capsys: pytest.CaptureFixture[str], name: Callable[[str], str], step: str):
    run = next(Path("runs/train_unet").iterdir()).name
    edit(train_unet__training__learning_rate=0.5)
    text = said(capsys, "resume", name(run))
    assert asked() == f"{run}/{step}"
    assert "params.training.learning_rate: 0.001 -> 0.5" in text and "rm runs/train_unet/resume.json" in text
    assert f"the next run goes on from {step}, as asked" in said(capsys, "runs")


def refused(capsys: pytest.CaptureFixture[str], name: str) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.main(["resume", name])
    assert not Path("runs/train_unet/resume.json").exists()
    return code, capsys.readouterr().err


def test_names_that_fit_no_run_or_several_are_refused_with_what_there_is(capsys: pytest.CaptureFixture[str]):
    first = next(Path("runs/train_unet").iterdir()).name
    edit(train_unet__training__learning_rate=0.5)
    second = save("train_unet", 60)
    for name, words in (
        ("train_unet", "2 runs have such a state"),
        ("nothing", "no such state"),
        ("", "no such state"),
    ):
        code, text = refused(capsys, name)
        assert code == 2 and words in text and "fix: see `ldm runs`" in text
        assert f"train_unet/{first}/step-000000041" in text
        assert f"train_unet/{second.directory.name}/step-000000060" in text


def test_a_damaged_state_and_one_in_use_are_refused(capsys: pytest.CaptureFixture[str]):
    run = save("train_unet")
    run.open()
    code, text = refused(capsys, "train_unet")
    assert code == 5 and f"in use (pid {os.getpid()}" in text
    run.close()
    path = run.directory / "step-000000041/tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    code, text = refused(capsys, "train_unet")
    assert code == 4 and "SHA-256" in text


def test_a_damaged_run_is_named_and_hides_no_other(capsys: pytest.CaptureFixture[str]):
    good = next(Path("runs/train_unet").iterdir())
    edit(train_unet__training__learning_rate=0.5)
    torn = save("train_unet", 60).directory
    shutil.copytree(good / "step-000000041", good / "step-000000041.bak")
    (torn / "fingerprint.json").write_text("")
    lines = said(capsys, "runs").splitlines()
    assert [line.partition(",")[0] for line in lines if "/step-" in line] == [
        f"train_unet/{torn.name}/step-000000060  60 steps",
        f"train_unet/{good.name}/step-000000020  20 of 80 steps",
        f"train_unet/{good.name}/step-000000041  41 of 80 steps",
    ]
    assert lines[1].startswith(f"  {torn}/fingerprint.json: no JSON") and f"rm -r {torn}" in lines[2]
    code, text = refused(capsys, f"train_unet/{torn.name}")
    assert code == 4 and f"rm -r {torn}" in text
    said(capsys, "resume", f"train_unet/{good.name}")
    assert asked() == f"{good.name}/step-000000041"


def test_a_damaged_request_is_named_and_replaced_by_the_next(capsys: pytest.CaptureFixture[str]):
    run, request = next(Path("runs/train_unet").iterdir()), Path("runs/train_unet/resume.json")
    request.write_text("")
    edit(machine__num_kept_runs=0)
    save("train_clip", 20)
    capsys.readouterr()
    assert cli.main(["runs", "--prune"]) == 0
    out, errors = capsys.readouterr()
    assert out.startswith("removed train_clip/") and f"{request}: no JSON" in out and "step-000000041" in out
    assert f"fix: rm {request}" in errors and "no run of train_unet is removed" in errors
    said(capsys, "resume", run.name)
    assert asked() == f"{run.name}/step-000000041"


def test_old_runs_are_pruned_on_demand(capsys: pytest.CaptureFixture[str]):
    first = next(Path("runs/train_unet").iterdir())
    edit(train_unet__training__learning_rate=0.5, machine__num_kept_runs=1)
    second = save("train_unet", 60)
    text = said(capsys, "runs", "--prune")
    assert re.match(rf"removed train_unet/{first.name} \(2.0 MB, 0 days old\)\n", text)
    assert second.directory.exists() and not first.exists()


def test_units_of_prepare_differ_by_what_they_depend_on_alone(capsys: pytest.CaptureFixture[str]):
    section = config.read(PrepareParams, "prepare")
    units = Run(Path("runs"), "prepare", prepared.made_by("stages/prepare.py", section))
    units.open()
    units.keep("a", {"w": torch.zeros(3)})
    units.close()
    assert said(capsys, "runs").splitlines()[1].startswith("  as params and code are now")
    for name, is_said in (("corpora/report", False), ("training/loop", False), ("corpora/shapes_scenes", True)):
        path = Path(f"ldm/{name}.py")
        path.write_text(path.read_text() + "SIZE = 3\n")
        of_prepare, _, of_unet = said(capsys, "runs").partition("train_unet/")
        assert of_unet and (f"differs: code.ldm/{name}.py" in of_prepare) == is_said
