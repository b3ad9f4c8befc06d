"""CPU threads: how many a process takes.

Threads wait for each other several hundred times per step, and spin meanwhile. If one of them shares its core with
another program, all wait for it: two threads beside one busy program are slower than one thread. So a stage takes no
more threads than there are free cores when it starts, unless the user names a number.
"""

import math
import os
import sys
from pathlib import Path

from ldm.core.params import MachineParams

_LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}
"""Variables that `accelerate launch` or torchrun sets for the processes that it starts."""
_SECONDS_OF_WATCHING = 0.5
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def asked_threads(machine: MachineParams) -> int | None:
    """CPU threads per process that the user asked for: `machine.threads`, else OMP_NUM_THREADS, else None."""
    return machine.threads or _asked_threads()


def threads(machine: MachineParams) -> int:
    """CPU threads of this process if no other program runs: those asked for, else `default_threads()`."""
    return asked_threads(machine) or default_threads()


def default_threads() -> int:
    """Physical cores that this process may use, at most SLURM_CPUS_PER_TASK, shared between the processes that run on
    this machine; at least 1."""
    import psutil

    allowed = len(_cores())
    physical = psutil.cpu_count(logical=False) or allowed
    task = _number(os.environ.get("SLURM_CPUS_PER_TASK", "")) or allowed
    return max(1, min(physical, allowed, task, _cgroup_cores()) // _num_local_processes())


def free_threads(num_threads: int) -> int:
    """Threads, from 1 to `num_threads`, that would each have a free core now if every process of this launch on this
    machine took as many. The processes must not be at work yet."""
    import psutil

    cores, num_processes = _cores(), _num_local_processes()
    load = psutil.cpu_percent(_SECONDS_OF_WATCHING, percpu=True)
    num_busy = round(sum(load[core] for core in cores if core < len(load)) / 100)
    return min(num_threads, max(1, (len(cores) - num_busy) // num_processes))


def _asked_threads() -> int | None:
    """OMP_NUM_THREADS, if the user set it. A launcher sets it to 1 where it is missing, so the user's value is read
    from the launcher's own environment."""
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
    """The first count of a list such as 4,2; None if it is not a positive whole number."""
    first = text.split(",")[0].strip()
    return int(first) or None if first.isascii() and first.isdigit() else None


def _num_local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _cgroup_cores() -> int:
    """Cores that a container's CPU quota allows, rounded up. The container itself sees all cores of its host."""
    try:
        quota, period = _CGROUP_LIMIT.read_text(encoding="ascii").split()
    except OSError:
        return sys.maxsize
    return sys.maxsize if quota == "max" else math.ceil(int(quota) / int(period))
