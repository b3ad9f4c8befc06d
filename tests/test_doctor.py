"""`ldm doctor`, on machines as they are and as they might be."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml

from ldm.compute import attention, cores, precision
from ldm.compute.precision import Rates
from ldm.core.errors import MachineError
from ldm.core.params import MachineParams
from ldm.tools import cli
from ldm.tools.cli import doctor
from ldm.tools.doctor import devices, report, system
from ldm.tools.doctor.finding import Finding, examined
from tests.import_closure import ROOT

MACHINE = MachineParams.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text())["machine"])


def only(found: list[Finding], name: str) -> Finding:
    (finding,) = [each for each in found if each.name == name]
    return finding


@pytest.fixture(autouse=True)
def settings_stay():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    attention.select("auto", torch.device("cpu"))


def test_the_command_tells_all_and_ends_well(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.parser().parse_args(["doctor"]).command is doctor._doctor
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    names = {match[1] for match in re.finditer(r"^(?:ok  |note)  (\w+(?: \w+)?)", said, re.MULTILINE)}
    assert {"versions", "processor", "threads", "busy cores", "memory", "disk", "attention", "precision"} <= names
    assert f"torch {torch.__version__.split('+')[0]}" in said
    section = yaml.safe_load(said[said.index("machine:\n") :])
    assert MachineParams.model_validate({**MACHINE.model_dump(), **section["machine"]}), "it can be pasted"


def test_outside_a_repository_it_works_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "speed", lambda: [])
    found = list(report.findings(tmp_path))
    assert only(found, "git").advice and report.machine_of(tmp_path) is None
    assert not [each for each in found if "could not be found out" in each.found]


def test_a_probe_that_fails_is_told_and_the_others_go_on() -> None:
    def broken():
        yield Finding("one", "fine")
        raise OSError("no such device")

    found = list(examined({"first": broken, "second": lambda: [Finding("two", "fine")]}))
    assert [each.name for each in found] == ["one", "first", "two"]
    assert found[1].found == "could not be found out (no such device)" and found[1].advice


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), AssertionError("torch has no CUDA"), AttributeError("x")])
def test_no_error_of_a_probe_ends_the_command_and_its_traceback_can_be_had(error, monkeypatch, capsys) -> None:
    def broken():
        raise error

    (found,) = examined({"first": broken})
    assert "could not be found out" in found.found and capsys.readouterr().err == ""
    monkeypatch.setenv(*found.advice.partition(" ")[0].split("="))
    list(examined({"first": broken}))
    assert "in broken" in capsys.readouterr().err


def test_other_versions_than_those_of_the_lock_are_named(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text(
        f"# pins\ntorch==0.1\nnumpy=={system._version('numpy')}\nnone-such==1\n"
    )
    lock = only(list(system.versions(tmp_path)), "lock")
    assert re.fullmatch(r"torch \S+ for 0\.1, none-such missing for 1", lock.found) and "make setup" in lock.advice


def test_a_torn_lock_of_dvc_is_named(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text('{"a": ')
    assert "rwlock is torn" in only(list(system.files(tmp_path)), "DVC").found
    (tmp_path / ".dvc/tmp/rwlock").write_text("{}")
    assert not [each for each in system.files(tmp_path) if each.name == "DVC"]


def test_accelerates_config_is_checked_as_stages_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate/default_config.yaml").write_text("mixed_precision: fp16\n")
    found = list(examined({"files": lambda: system.files(ROOT)}))
    assert "mixed_precision" in found[-1].found and "could not" not in found[-1].found
    assert found[-1].advice and "fix:" not in found[-1].advice and found[-1].advice not in found[-1].found


def test_cores_that_others_keep_busy_are_told_with_the_key_that_ignores_them(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(cores, "default_threads", lambda: 8)
    monkeypatch.setattr(cores, "free_threads", lambda usual: usual - 3)
    busy = only(list(system.processor(MACHINE)), "busy cores")
    assert busy.found.startswith("3 of 8 threads") and "`machine.threads: 8`" in busy.advice
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert only(list(system.processor(MACHINE)), "busy cores").advice == "", "a number that is asked for is taken"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(cores, "free_threads", lambda usual: usual)
    assert only(list(system.processor(MACHINE)), "busy cores").advice == ""


def test_threads_and_workers_beyond_the_cores_are_advised_against(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 32)
    monkeypatch.setattr(cores, "free_threads", lambda usual: usual)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = list(system.processor(MACHINE.model_copy(update={"threads": 32, "num_workers": 32})))
    assert only(found, "threads").advice.endswith("at most 4") and only(found, "threads").machine == {"threads": None}
    assert "this process may use 4 of 64" in only(found, "threads").found
    assert only(found, "workers").machine == {"num_workers": 4} and only(found, "workers").advice


def test_little_memory_and_space_change_keys(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9, total=2e9))
    assert only(list(system.memory()), "memory").machine == {"num_workers": 0}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**8))
    assert "--shm-size" in only(list(system.memory()), "shared memory").advice
    (disk,) = system.disks({"results": tmp_path, "saved states": tmp_path / "runs/not/there"})
    assert disk.machine == {"num_kept_runs": 1} and "0.1 GB free for results, saved states, temp" in disk.found


def test_without_a_compiler_compiling_is_advised_against(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (found,) = system.compiler(MACHINE.model_copy(update={"compile": True}))
    assert found.machine == {"compile": False} and "machine.compile: false" in found.advice


def test_backends_are_tried_and_one_that_is_named_but_does_not_run_is_replaced(monkeypatch) -> None:
    (fine,) = devices.backends(MACHINE)
    assert "sdpa (fp32, bf16)" in fine.found and fine.machine == {"attention": "auto"} and not fine.advice
    real = attention.prove

    def prove(device, shapes, precision, *, trains):
        if attention.selected() == "math" and precision == "bf16":
            raise MachineError("machine.attention", "math cannot run on cpu (no kernel)", "x", "y")
        real(device, shapes, precision, trains=trains)

    monkeypatch.setattr(attention, "prove", prove)
    (found,) = devices.backends(MACHINE)
    assert "math (fp32)" in found.found
    if "not xformers" in found.found:
        (found,) = devices.backends(MACHINE.model_copy(update={"attention": "xformers"}))
        assert found.machine == {"attention": "auto"} and found.advice


def test_what_auto_comes_to_is_told_for_both_kinds_of_layer(monkeypatch) -> None:
    rates = {"fp32": Rates(convolution=140, linear=20), "bf16": Rates(convolution=70, linear=80)}
    monkeypatch.setattr(precision, "rates", lambda: rates)
    monkeypatch.setattr(precision, "is_measured", lambda device: True)
    convolution, linear = devices.speed()
    assert convolution.found == "convolution layers: fp32 (auto: 70 GFLOP/s in bf16, 140 in fp32 per core)"
    assert linear.found == "linear layers: bf16 (auto: 80 GFLOP/s in bf16, 20 in fp32 per core)"


def test_a_cpu_without_kernels_for_bf16_is_told_apart(monkeypatch) -> None:
    monkeypatch.setattr(precision, "is_measured", lambda device: False)
    (found,) = devices.speed()
    assert found.found == "fp32 (auto: this cpu has no units for bf16)"


def test_the_section_marks_what_params_have_otherwise() -> None:
    found = [Finding("a", "b", "c", {"threads": None, "num_workers": 0}), Finding("a", "b", "", {"attention": "auto"})]
    assert list(report.section(found, MACHINE)) == [
        "machine:",
        "  threads: null",
        f"  num_workers: 0    # now: {MACHINE.num_workers}",
        "  attention: auto",
    ]


def test_gpus_are_listed_with_their_memory_and_how_all_of_them_are_used(monkeypatch) -> None:
    free = {0: 70e9, 1: 10e9}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 80e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Brand X")
    first, second, launch = devices.devices()
    assert first.found == "GPU 0: Brand X, 70.0 of 80.0 GB free" and not first.advice
    assert second.advice == "end the programs that hold most of its memory"
    assert "configs/accelerate/ddp.yaml" in launch.advice and (ROOT / "configs/accelerate/ddp.yaml").is_file()


def test_a_gpu_that_torch_cannot_use_is_told_from_none(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (none,) = devices.devices()
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    (unusable,) = devices.devices()
    assert not none.advice and "CUDA 12.8" in unusable.advice and "--gpus all" in unusable.advice
    monkeypatch.setattr(torch.version, "cuda", None)
    (of_cpu,) = devices.devices()
    assert "CPUs alone" in of_cpu.advice
