"""Exit codes, outputs that appear whole or not at all, threads, and what a launcher may not decide."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm import stage
from ldm.errors import IntegrityError, MachineError, Stopped
from ldm.params.machine import MachineParams
from tests.training_data import KEPT

ROOT = Path(__file__).parents[1]

TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from ldm import stage
from ldm.params.machine import MachineParams

def main():
    machine = MachineParams(threads=2, num_workers=0, attention="math", compile=False, **{kept})
    accelerator = stage.start("fp32", machine)
    assert torch.get_num_threads() == 2
    with stage.output(Path("out"), accelerator) as folder:
        (folder / str(accelerator.process_index)).write_text(str(list(stage.share_of(5, accelerator))))
    assert Path("out/1").is_file()
    return "summary"

stage.run(main)
"""


def stop() -> str:
    raise Stopped("step 3", "stopped", "a whole run", "run it again")


def test_a_user_error_ends_with_its_code_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        stage.run(stop)
    assert caught.value.code == 75
    assert capsys.readouterr().err == "step 3: stopped; expected a whole run\nfix: run it again\n"


def test_debugging_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_DEBUG", "1")
    with pytest.raises(Stopped):
        stage.run(stop)


@pytest.mark.parametrize(("rank", "printed"), [("0", "done\n"), ("1", "")])
def test_only_the_first_process_prints_the_summary(
    rank: str, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    stage.run(lambda: "done")
    assert capsys.readouterr().out == printed


def test_the_stage_time_goes_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_TIMES", str(tmp_path / "times"))
    monkeypatch.setattr(sys, "argv", ["stages/sample.py"])
    stage.run(lambda: "done")
    name, seconds = (tmp_path / "times").read_text().split()
    assert name == "sample"
    assert float(seconds) > 0


def test_an_output_replaces_the_former_one_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    for content in ("first", "second"):
        with stage.output(path) as folder:
            assert list(folder.iterdir()) == []
            (folder / content).write_text(content)
            assert not (path / content).exists()
        assert [file.name for file in path.iterdir()] == [content]
    assert [entry.name for entry in path.parent.iterdir()] == ["out"]


def test_a_failed_output_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(IntegrityError), stage.output(path) as folder:
        (folder / "half").write_text("")
        raise IntegrityError("a", "b", "c", "d")
    assert list(tmp_path.iterdir()) == []
    with stage.output(path) as folder:
        (folder / "whole").write_text("")
    with pytest.raises(KeyboardInterrupt), stage.output(path) as folder:
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (path / "whole").is_file()


def test_a_full_disk_is_told_with_the_bytes_that_are_free(tmp_path: Path) -> None:
    with stage.output(tmp_path / "out") as folder:
        (folder / "whole").write_text("")
    with pytest.raises(MachineError, match=r"No space left.*; \d+ bytes are free"), stage.output(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), stage.output(tmp_path / "out"):
        raise FileNotFoundError(errno.ENOENT, "no such file")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["out", "whole"]


def test_leftovers_of_a_killed_stage_are_cleared(tmp_path: Path) -> None:
    for name in (".out.building", ".out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "left").write_text("")
    (tmp_path / "out").mkdir()
    with stage.output(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_link_into_a_cache_is_replaced_not_followed(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", tmp_path / "out"
    cache.mkdir()
    (cache / "kept").write_text("kept")
    path.symlink_to(cache)
    with stage.output(path) as folder:
        (folder / "new").write_text("")
    assert not path.is_symlink()
    assert [file.name for file in cache.iterdir()] == ["kept"]


def test_threads_are_shared_by_the_processes_of_a_machine_and_respect_a_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(stage, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert stage.default_threads() == 8
    limit.write_text("max 100000\n")
    assert stage.default_threads() == 8
    limit.write_text("350000 100000\n")
    assert stage.default_threads() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert stage.default_threads() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert stage.default_threads() == 1


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision: fp16; expected fp32"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision: bf16; expected fp32"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps: 4; expected 2"),
        ("ACCELERATE_USE_FSDP", "true", "split over processes; expected whole models, data parallel"),
    ],
)
def test_a_launcher_config_may_not_change_the_result(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    machine = MachineParams(threads=1, num_workers=0, attention="math", compile=False, **KEPT)
    with pytest.raises(MachineError, match=words):
        stage.start("fp32", machine, num_accumulation_steps=2)


def test_two_processes_share_an_output(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES.format(root=str(ROOT), kept=KEPT))
    launcher = str(Path(sys.executable).with_name("accelerate"))
    command = [
        launcher,
        "launch",
        "--quiet",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        str(script),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {file.name: file.read_text() for file in (tmp_path / "out").iterdir()} == {"0": "[0, 2, 4]", "1": "[1, 3]"}
    assert done.stdout.splitlines() == ["cpu x 2, 2 threads each, fp32, attention: math", "summary"]
