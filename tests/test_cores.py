"""How many threads a process takes, alone and beside other work."""

import os
from pathlib import Path
from typing import Any

import pytest

from ldm.compute import cores, devices
from ldm.core.params import MachineParams
from tests.stage_scripts import forget_accelerator
from tests.training_data import KEPT

MACHINE = MachineParams(threads=1, num_workers=0, attention="math", compile=False, **KEPT)


def test_threads_are_shared_by_the_processes_of_a_machine_and_respect_a_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert cores.default_threads() == 8
    limit.write_text("max 100000\n")
    assert cores.default_threads() == 8
    limit.write_text("350000 100000\n")
    assert cores.default_threads() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores.default_threads() == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert cores.default_threads() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert cores.default_threads() == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "32")
    assert cores.default_threads() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert cores.default_threads() == 1


class Launcher:
    """What psutil says of the parent process."""

    def __init__(self, environment: dict[str, str], *options: str) -> None:
        self.environment, self.options = environment, options

    def __call__(self, pid: int) -> "Launcher":
        assert pid == os.getppid()
        return self

    def environ(self) -> dict[str, str]:
        return self.environment

    def cmdline(self) -> list[str]:
        return ["python", "accelerate", "launch", *self.options, "stages/sample.py"]


@pytest.mark.parametrize(
    ("threads", "given", "launcher", "expected"),
    [
        (5, "3", None, 5),
        (None, "3", None, 3),
        (None, "3,2", None, 3),
        (None, None, None, 8),
        (None, "many", None, 8),
        (None, "0", None, 8),
        (None, "1", Launcher({}), 8),
        (None, "1", Launcher({"OMP_NUM_THREADS": "1"}), 1),
        (None, "6", Launcher({"OMP_NUM_THREADS": "6"}), 6),
        (None, "4", Launcher({}, "--num_cpu_threads_per_process=4"), 4),
        (None, "4", Launcher({}, "--num-cpu-threads-per-process", "4"), 4),
    ],
)
def test_threads_are_those_of_the_params_then_of_the_user_then_of_the_machine(
    threads: int | None, given: str | None, launcher: Any, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "default_threads", lambda: 8)
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        monkeypatch.setattr("psutil.Process", launcher)
    assert cores.threads(MACHINE.model_copy(update={"threads": threads})) == expected


@pytest.mark.parametrize(
    ("load", "num_processes", "num_threads", "expected"),
    [
        ([3.0, 99.0, 4.0, 0.0], 1, 4, 3),
        ([50.0, 99.0, 52.0, 0.0], 1, 4, 2),
        ([97.0, 90.0, 99.0, 100.0], 1, 4, 1),
        ([20.0, 10.0, 4.0, 0.0], 1, 4, 4),
        ([3.0, 99.0, 4.0, 0.0], 1, 2, 2),
        ([3.0, 99.0, 4.0, 0.0], 2, 2, 1),
        ([0.0, 99.0, 99.0, 99.0], 2, 2, 1),
    ],
)
def test_threads_beside_other_work_are_as_many_as_cores_are_free(
    load: list[float], num_processes: int, num_threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds, percpu: [100.0, *load, 100.0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3, 4})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_processes))
    assert cores.free_threads(num_threads) == expected


@pytest.mark.parametrize(
    ("asked", "free", "expected", "words"),
    [
        (
            None,
            1,
            1,
            "1 of 4 threads, which is faster beside it, with other last bits than 4 (machine.threads: 4",
        ),
        (None, 4, 4, ""),
        (4, 1, 4, ""),
        (2, 1, 2, ""),
    ],
)
def test_a_stage_takes_the_free_cores_unless_a_number_is_asked_for(
    asked: int | None,
    free: int,
    expected: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forget_accelerator()
    set_threads: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(cores, "default_threads", lambda: 4)
    monkeypatch.setattr(cores, "free_threads", lambda num_threads: min(num_threads, free))
    monkeypatch.setattr("torch.set_num_threads", set_threads.append)
    devices.start(MACHINE.model_copy(update={"threads": asked}))
    said = capsys.readouterr()
    assert set_threads == [expected] and f"{expected} threads each" in said.out
    assert words in said.err and bool(words) == bool(said.err)
