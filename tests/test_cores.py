"""How many threads a process takes, and the cores it keeps to beside other work: which, when, and with equal results."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ldm import cores
from ldm.params.machine import MachineParams
from tests.training_data import KEPT

ROOT = Path(__file__).parents[1]
MACHINE = MachineParams(threads=1, num_workers=0, attention="math", compile=False, **KEPT)

LAUNCH = """
import sys
import psutil
from ldm import launch
psutil.cpu_percent = lambda seconds, percpu: [{load}] * 4096
sys.exit(launch.main([{script!r}]))
"""
TRAINING = """
import hashlib, os, sys
sys.path.insert(0, {root!r})
from ldm import cores
from ldm.params.machine import MachineParams
import torch
from torch import nn

machine = MachineParams(threads=None, num_workers=0, attention="math", compile=False, **{kept})
torch.set_num_threads(cores.threads(machine))
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(4, 64, 3), nn.GroupNorm(8, 64), nn.SiLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.LazyLinear(8))
x = torch.randn(16, 4, 20, 20)
net(x)
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
for _ in range(20):
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(x).float().square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
bits = b"".join(weight.detach().numpy().tobytes() for weight in net.parameters())
print(len(os.sched_getaffinity(0)), torch.get_num_threads(), hashlib.sha256(bits).hexdigest())
"""


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


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A process that may use cores 1 to 4 of eight; what `keep_to_free` is told of their load, and what it sets."""
    told: dict[str, Any] = {"load": [100.0] * 8, "kept": None}
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds, percpu: told["load"])
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3, 4})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, kept: told.update(kept=kept))
    monkeypatch.setattr(cores, "_CGROUP_LIMIT", Path("/nowhere"))
    for name in (cores.NUM_CORES, "SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE", *cores._BOUND_BY_USER):
        monkeypatch.delenv(name, raising=False)
    return told


@pytest.mark.parametrize(
    ("load", "kept", "words"),
    [
        ([3.0, 99.0, 4.0, 0.0], [1, 3, 4], "1 of 4 cores is busy with other work: kept to 3 of them"),
        ([50.0, 99.0, 52.0, 0.0], [1, 4], "2 of 4 cores are busy with other work: kept to 2 of them"),
        ([97.0, 90.0, 99.0, 100.0], [2], "4 of 4 cores are busy with other work: kept to core 2"),
        ([20.0, 10.0, 4.0, 0.0], None, ""),
    ],
)
def test_a_launch_keeps_to_the_free_cores(
    load: list[float], kept: list[int] | None, words: str, four_cores: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cores.NUM_CORES, "4")  # or the variable that it sets would stay
    monkeypatch.delenv(cores.NUM_CORES)
    four_cores["load"] = [100.0, *load, 100.0, 100.0, 100.0]
    said = cores.keep_to_free()
    assert said.startswith(words) and bool(said) == bool(words) and four_cores["kept"] == kept
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(kept or {1, 2, 3, 4}))
    assert cores.default_threads() == 4, "other work does not change the number of threads"


def test_a_launch_leaves_alone_what_the_user_bound_and_what_needs_fewer_cores(
    four_cores: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as bound:
        bound.setenv("OMP_PROC_BIND", "close")
        assert not cores.keep_to_free()
    four_cores["load"] = [0.0, 99.0, 99.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert not cores.keep_to_free() and four_cores["kept"] is None


def test_a_stage_beside_other_work_has_the_same_threads_and_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TRAINING.format(root=str(ROOT), kept=KEPT))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "LDM_", "SLURM"))}
    environment["ACCELERATE_USE_CPU"] = "true"
    found: list[list[str]] = []
    for load in (0.0, 100.0):
        command = [sys.executable, "-c", LAUNCH.format(load=load, script=str(script))]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and ("busy" in done.stderr) == bool(load), done.stderr
        found.append(done.stdout.split())
    (_, *same_alone), (num_cores, *same_beside) = found
    assert num_cores == "1"
    assert same_alone == same_beside and int(same_alone[0]) == cores.default_threads()
