"""Exit codes, outputs that appear whole or not at all, and what a launcher may not decide."""

import ast
import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from ldm.compute import cores, devices, precision
from ldm.core import stage
from ldm.core.errors import IntegrityError, MachineError, Stopped
from ldm.core.params import MachineParams
from tests.killed_outputs import PAIR, fill, written
from tests.stage_scripts import forget_accelerator
from tests.training_data import KEPT

ROOT = Path(__file__).parents[1]
MACHINE = MachineParams(threads=1, num_workers=0, attention="math", compile=False, **KEPT)
IMPORTS = (ast.Import, ast.ImportFrom)

ONE_PROCESS = """
import sys
sys.path.insert(0, {root!r})
from ldm.compute import cores, devices, process
cores.free_threads = lambda num_threads: num_threads  # whatever else runs here
from ldm.core.params import MachineParams

machine = MachineParams(
    threads=None, num_workers=0, attention="math", compile=False, channels_last=False, num_batches_ahead=None,
    background_saves=None, deterministic=True, num_kept_runs=None, max_run_age_days=None,
    keep_finished_states=False, trackers=[],
)
accelerator = devices.start(machine)
import torch
print(accelerator.num_processes, accelerator.mixed_precision, torch.get_num_threads())
"""

PAGES = """
import resource
import torch
from ldm.compute import devices

devices.keep_memory()
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(2**20) for _ in range(8)]  # 4 MiB each
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from ldm.compute import devices, process
from ldm.core import stage
from ldm.core.params import MachineParams

def main():
    machine = MachineParams(threads=2, num_workers=0, attention="math", compile=False, **{kept})
    accelerator = devices.start(machine)
    assert torch.get_num_threads() == 2
    with process.output(Path("out"), accelerator) as folder:
        (folder / str(accelerator.process_index)).write_text(str(list(process.share_of(range(5), accelerator))))
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


@pytest.mark.parametrize("former", [(), ("results",), PAIR])
def test_a_kill_at_any_point_leaves_both_former_outputs_or_both_new_ones(
    tmp_path: Path, former: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "tests.killed_outputs", str(tmp_path), *former]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_an_error_while_outputs_are_renamed_brings_the_former_ones_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PAIR:
        fill(tmp_path / name, "old")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if source.name == ".results.building":
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    paths = [tmp_path / name for name in PAIR]
    with pytest.raises(MachineError, match="Input/output error"), stage.outputs(*paths) as folders:
        for folder in folders:
            fill(folder, "new")
    assert written(tmp_path) == dict.fromkeys(PAIR, "old")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(PAIR)


def test_two_runs_do_not_write_the_same_output(tmp_path: Path) -> None:
    with stage.output(tmp_path / "out") as folder:
        (folder / "mine").write_text("")
        said = rf"\.out\.lock: a run is already .*pid {os.getpid()}"
        with pytest.raises(MachineError, match=said), stage.outputs(tmp_path / "other", tmp_path / "out"):
            pass
        assert (folder / "mine").exists()
        assert not list(tmp_path.glob(".other*")), "nothing is held or built"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_place_that_takes_no_output_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")

    def main() -> str:
        with stage.output(tmp_path / "file" / "deep" / "out"):
            return "never"

    with pytest.raises(SystemExit) as caught:
        stage.run(main)
    assert caught.value.code == 5
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path / 'file'}") and "Not a directory; expected" in said and said.count("\n") == 2


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision: fp16; expected 'no' or bf16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "mixed_precision: fp8; expected 'no' or bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps: 4; expected 2"),
        ("ACCELERATE_USE_FSDP", "true", "fsdp_version: found 1; expected 2"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "split over processes; expected whole models or FSDP2"),
    ],
)
def test_a_launcher_config_may_not_change_the_result(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(MachineError, match=words):
        devices.start(MACHINE, SimpleNamespace(num_accumulation_steps=2, precision="fp32"))


def test_a_network_that_is_compiled_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(MachineError, match=r"machine.compile: found true; expected false where models are split"):
        devices.start(MACHINE.model_copy(update={"compile": True}))


@pytest.mark.parametrize("answer", ["no", "bf16"])
def test_the_params_overrule_what_a_launcher_config_says(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", answer)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = devices.start(MACHINE, SimpleNamespace(num_accumulation_steps=3, precision="fp32"))
    assert accelerator.mixed_precision == "no", "precision.autocast is the only one"
    assert accelerator.gradient_accumulation_steps == 3
    assert accelerator.state.dynamo_plugin.backend == "NO", "machine.compile decides what is compiled"


@pytest.mark.parametrize("trains", [True, False])
def test_mkl_is_freed_for_trainings_alone(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setattr(precision, "is_measured", lambda device: False)
    devices.start(MACHINE, SimpleNamespace(num_accumulation_steps=1, precision="auto") if trains else None)
    assert os.environ["MKL_CBWR"] == ("AUTO" if trains else "COMPATIBLE")


@pytest.mark.parametrize(
    ("asked", "before", "settled", "why"),
    [
        ("fp32", "bf16", "fp32", "as the params say"),
        ("bf16", None, "bf16", "as the params say"),
        ("auto", "bf16", "bf16", "as this work began"),
        ("auto", None, "fp32", "measured"),
    ],
)
def test_a_precision_is_that_of_the_params_then_of_the_start_then_measured(
    asked: Any, before: Any, settled: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(precision, "choose", lambda network, device: ("fp32", "measured"))
    assert devices.settle(asked, nn.Linear(1, 1), devices.start(MACHINE), before) == settled
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"precision {settled} (") and why in said


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc has thresholds")
@pytest.mark.parametrize(("setting", "is_kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_memory_is_kept_for_the_next_step_unless_the_user_has_set_how(setting: dict[str, str], is_kept: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in devices._SET_BY_USERS} | setting
    done = subprocess.run([sys.executable, "-c", PAGES], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The ten steps take 81,920 pages, if each asks for its own.
    assert (int(done.stdout) < 8192) == is_kept, f"{done.stdout} pages were asked for"


def test_a_stage_without_a_setting_takes_the_launchers_own_count_for_nobodys(tmp_path: Path) -> None:
    """accelerate's default config as `accelerate config` writes it, with bf16, and a stage in fp32."""
    script = tmp_path / "script.py"
    script.write_text(ONE_PROCESS.format(root=str(ROOT)))
    config = tmp_path / "accelerate/default_config.yaml"
    config.parent.mkdir()
    config.write_text("distributed_type: 'NO'\nmixed_precision: bf16\nnum_processes: 1\n")
    launcher = str(Path(sys.executable).with_name("accelerate"))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tmp_path)}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([launcher, "launch", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"1 no {cores.default_threads()}"


def test_mkl_is_told_to_multiply_alike_on_every_cpu_unless_the_user_says_otherwise() -> None:
    code = "import runpy, os; runpy.run_path('stages/train_autoencoder.py'); print(os.environ['MKL_CBWR'])"
    for given, expected in (({}, "COMPATIBLE"), ({"MKL_CBWR": "AVX2"}, "AVX2")):
        environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"} | given
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"{expected}\n"


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_every_stage_imports_ldm_before_what_may_load_torch(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    modules = [n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in body if type(n) in IMPORTS]
    roots = [str(module).split(".")[0] for module in modules]
    assert next(root for root in roots if root not in sys.stdlib_module_names) == "ldm"


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
    lines = [line for line in done.stdout.splitlines() if line.startswith(("cpu", "summary"))]  # Gloo says it connects
    assert lines == ["cpu x 2, 2 threads each, attention: math", "summary"]
