"""Probes of packages, files, cores, memory and disks. None of them needs torch."""

import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ldm.compute import cores
from ldm.core.params import MachineParams
from ldm.tools.check import launch_config
from ldm.tools.doctor.finding import Finding

_SHOWN = ("torch", "accelerate", "dvc", "numpy", "open_clip_torch", "xformers", "gradio")
_PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)")
_GB = 1e9
_FEW_GB = 5
"""Free space with which the default just runs: its results, DVC's cache and saved states take 1.4 GB."""
_SHARED_GB = 0.25
_MEMORY_GB = 4
_MANY = 4


def versions(root: Path) -> Iterator[Finding]:
    """Python and packages, beside those that requirements.lock pins."""
    python = platform.python_version()
    shown = [f"{name} {version}" for name in _SHOWN if (version := _version(name)) is not None]
    supported = sys.version_info[:2] in ((3, 11), (3, 12))
    advice = "" if supported else "use Python 3.11 or 3.12: `make setup` looks for them"
    yield Finding("versions", f"ldm {_version('ldm') or 'not installed'}, Python {python}, {', '.join(shown)}", advice)
    if not (root / "requirements.lock").is_file():
        return
    pins = dict(_PIN.findall((root / "requirements.lock").read_text(encoding="utf-8")))
    others = [
        f"{name} {found or 'missing'} for {pin}" for name, pin in pins.items() if (found := _version(name)) != pin
    ]
    if not others:
        yield Finding("lock", f"all {len(pins)} packages as requirements.lock pins them")
        return
    more = f" and {len(others) - _MANY} more" if len(others) > _MANY else ""
    advice = "equal bits need equal packages: `make setup` installs those of the lock"
    yield Finding("lock", f"{', '.join(others[:_MANY])}{more}", advice)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def files(root: Path) -> Iterator[Finding]:
    """What would stop `dvc repro` or a launch at once."""
    if not (root / ".git").exists():
        yield Finding("git", "no git repository here", "DVC needs one: run this in a clone")
    lock = root / ".dvc/tmp/rwlock"
    if lock.is_file() and not _is_json(lock):
        yield Finding("DVC", f"{lock} is torn", "remove it, once no `dvc` runs: DVC makes a new one")
    launch_config.check()
    if (path := launch_config.config_path()).is_file():
        yield Finding("accelerate", f"{path} can be used")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def processor(machine: MachineParams | None) -> Iterator[Finding]:
    """Cores that a process may use, and those that are free now."""
    import psutil

    allowed, logical = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    yield Finding("processor", f"{_model()}; {physical} cores, {logical} with hyper-threads")
    usual = cores.default_threads()
    limits = [f"this process may use {allowed} of {logical}"] * (allowed < logical)
    limits += [
        f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK") if name in os.environ
    ]
    why = f" ({'; '.join(limits)})" if limits else ""
    asked = machine.threads if machine is not None else None
    advice = f"more threads than cores wait for each other: at most {usual}" if (asked or 0) > usual else ""
    yield Finding(
        "threads", f"{cores.threads(machine) if machine else usual} per process{why}", advice, {"threads": None}
    )
    free = cores.free_threads(usual)
    advice = ""
    if free < usual and not (machine is not None and cores.asked_threads(machine)):
        advice = (
            f"a training that starts now takes {free}; `machine.threads: {usual}` keeps its last bits, and is slower"
        )
    yield Finding("busy cores", f"{usual - free} of {usual} threads would share their cores with other work", advice)
    yield from _workers(machine, allowed)


def _workers(machine: MachineParams | None, allowed: int) -> Iterator[Finding]:
    suits = allowed if allowed > 1 else 0
    now = suits if machine is None else machine.num_workers
    is_fine = suits / 2 <= now <= suits
    advice = "" if is_fine else f"`prepare` is fastest with about as many as cores: {suits}"
    yield Finding(
        "workers", f"{now} of `prepare` on {allowed} cores", advice, {"num_workers": now if is_fine else suits}
    )


def _model() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*: (.+)$", info.read_text(errors="replace"), re.M) if info.is_file() else None
    return match[1] if match else platform.machine()


def memory() -> Iterator[Finding]:
    """Main memory, and what processes share."""
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / _GB:.1f} of {memory.total / _GB:.1f} GB available"
    is_little = memory.available < _MEMORY_GB * _GB
    advice = "end other programs, or set `machine.num_workers: 0` and smaller batches" if is_little else ""
    yield Finding("memory", found, advice, {"num_workers": 0} if is_little else {})
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        is_little = free < _SHARED_GB * _GB
        advice = "several GPUs talk through it: `docker run --shm-size=1g`" if is_little else ""
        yield Finding("shared memory", f"{free / _GB:.2f} GB free in {shared}", advice)


def disks(places: dict[str, Path]) -> Iterator[Finding]:
    """Free space where results, saved states and temporary files go. places: name -> folder, there or not."""
    found: dict[int, tuple[list[str], int]] = {}
    for name, path in {**places, "temporary files": Path(tempfile.gettempdir())}.items():
        there = next(part for part in (path.absolute(), *path.absolute().parents) if part.exists())
        names, _ = found.setdefault(there.stat().st_dev, ([], shutil.disk_usage(there).free))
        names.append(name)
    for names, free in found.values():
        is_little = free < _FEW_GB * _GB
        advice = "free space, or keep fewer states of old runs: `machine.num_kept_runs: 1`, `ldm runs --prune`"
        keys = {"num_kept_runs": 1} if is_little and "saved states" in names else {}
        yield Finding("disk", f"{free / _GB:.1f} GB free for {', '.join(names)}", advice if is_little else "", keys)


def compiler(machine: MachineParams | None) -> Iterator[Finding]:
    """Whether torch.compile finds what it calls."""
    found = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    if found is not None:
        yield Finding("compiler", f"{found}: `machine.compile: true` can work; it pays in trainings of hours")
        return
    advice = (
        "set `machine.compile: false`, or install g++"
        if machine is not None and machine.compile in (True, "blocks")
        else ""
    )
    yield Finding("compiler", "none, which torch.compile needs", advice, {"compile": False})
