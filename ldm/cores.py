"""CPU cores and threads: how many threads a process takes, and which cores it keeps to beside other work.

Threads wait for each other several hundred times in a step. If one of them shares its core with another program, all
wait for it: two threads with one core and a half are slower than one. Fewer threads would be a way out, but they add in
another order, and the last bits of a result would depend on what else ran. So a stage has as many threads as always and
keeps to the cores that are free; there its threads take turns, and sleep where they would have spun.
"""

import math
import os
import sys
from pathlib import Path

from ldm.params.machine import MachineParams

NUM_CORES = "LDM_NUM_CORES"
"""Variable that a launcher sets when it keeps to the free cores: how many there were before."""
_BOUND_BY_USER = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}
"""Variables that `accelerate launch` or torchrun set for the processes they start."""
_SECONDS_OF_WATCHING = 0.5
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def threads(machine: MachineParams) -> int:
    """CPU threads of this process: `machine.threads`, else the user's OMP_NUM_THREADS, else `default_threads()`."""
    return machine.threads or _asked_threads() or default_threads()


def default_threads() -> int:
    """Physical cores that this process may use, at most SLURM_CPUS_PER_TASK, shared between the processes that run on
    this machine; at least 1. Cores that are busy count too: the number must not depend on other work."""
    import psutil

    allowed = _number(os.environ.get(NUM_CORES, "")) or len(_cores())
    physical = psutil.cpu_count(logical=False) or allowed
    task = _number(os.environ.get("SLURM_CPUS_PER_TASK", "")) or allowed
    return max(1, min(physical, allowed, task, _cgroup_cores()) // _num_local_processes())


def keep_to_free() -> str:
    """Keep this process, and what it starts, to the cores that no other program is busy on, if these are fewer than its
    threads; at least to one. Returns a line that says so, else nothing.

    It must happen before torch is loaded: OpenMP asks only then how many cores it has, and lets threads that are more
    than the cores sleep soon. Where the user bound threads to cores (OMP_PROC_BIND and the like), nothing is done.
    """
    import psutil

    cores, wanted = _cores(), default_threads()
    if not hasattr(os, "sched_setaffinity") or any(name in os.environ for name in _BOUND_BY_USER):
        return ""
    load = psutil.cpu_percent(_SECONDS_OF_WATCHING, percpu=True)
    load = {core: load[core] for core in cores if core < len(load)}
    num_free = len(load) - round(sum(load.values()) / 100)
    if num_free >= min(wanted, len(load)):
        return ""
    kept = sorted(sorted(load, key=load.__getitem__)[: max(1, num_free)])
    os.sched_setaffinity(0, kept)
    os.environ.setdefault(NUM_CORES, str(len(cores)))
    busy, verb = len(load) - num_free, "is" if len(load) - num_free == 1 else "are"
    where = f"core {kept[0]}" if len(kept) == 1 else f"{len(kept)} of them"
    return f"{busy} of {len(load)} cores {verb} busy with other work: kept to {where}, slower, with the same results"


def _asked_threads() -> int | None:
    """OMP_NUM_THREADS, if the user set it. A launcher sets it to 1 where it is not set: what the user set is in the
    launcher's own environment."""
    import psutil

    asked = os.environ.get("OMP_NUM_THREADS", "")
    if _LAUNCHED & os.environ.keys():
        try:
            launcher = psutil.Process(os.getppid())
            is_option = any("num_cpu_threads" in argument.replace("-", "_") for argument in launcher.cmdline())
            asked = asked if is_option else launcher.environ().get("OMP_NUM_THREADS", "")
        except psutil.Error:
            return None
    return _number(asked)


def _number(text: str) -> int | None:
    """The first of the counts in a list such as 4,2; None for what is not a count."""
    first = text.split(",")[0].strip()
    return int(first) or None if first.isascii() and first.isdigit() else None


def _num_local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _cgroup_cores() -> int:
    """Cores that a container's CPU quota allows, rounded up; a container sees all cores of its host otherwise."""
    try:
        quota, period = _CGROUP_LIMIT.read_text(encoding="ascii").split()
    except OSError:
        return sys.maxsize
    return sys.maxsize if quota == "max" else math.ceil(int(quota) / int(period))
