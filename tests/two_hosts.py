"""Two hosts on one machine: network namespaces with host names of their own, joined by a cable, and the commands of
Slurm by which a job script sees them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.import_closure import ROOT

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
tasks=()
for node in 0 1; do
    export SLURM_NODEID=$node
    ip netns exec {name}-$node unshare --uts bash -c 'hostname host-$SLURM_NODEID; exec "$@"' task "$@" &
    tasks+=($!)
done
code=0
for task in "${{tasks[@]}}"; do wait "$task" || code=$?; done
exit $code
"""
_SCONTROL = f"""#!/bin/bash
[[ $1 == show && $2 == hostnames ]] && printf '%s\\n' {" ".join(ADDRESSES)}
"""


@dataclass(frozen=True)
class Hosts:
    """Two hosts, whose namespaces are NAME-0 and NAME-1."""

    name: str

    def run_job(self, script: Path, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> str:
        """A job script as Slurm would run it, with one process per host on its CPU; returns what it printed.

        folder: where the commands are put.
        """
        commands = {"srun": _SRUN.format(name=self.name), "scontrol": _SCONTROL}
        for command, text in commands.items():
            (folder / command).write_text(text)
            (folder / command).chmod(0o755)
        slurm = {"JOB_ID": "4711", "JOB_NODELIST": "host-[0-1]", "NNODES": "2", "GPUS_ON_NODE": "1"}
        variables = {f"SLURM_{name}": value for name, value in {**slurm, "CPUS_PER_TASK": "1"}.items()}
        variables |= {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": sys.executable, "HF_HOME": str(folder)}
        variables |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        env = {**os.environ, **variables, **environment}
        command = ["bash", str(script), *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def received(self) -> list[int]:
        """Bytes that came in over the cable, by host."""
        counts: list[int] = []
        for number in range(2):
            found = json.loads(_ip("-n", f"{self.name}-{number}", "-s", "-j", "link", "show", "eth0"))
            counts.append(found[0]["stats64"]["rx"]["bytes"])
        return counts


@contextmanager
def joined() -> Generator[Hosts]:
    """Two hosts, until the end of the block. OSError: they cannot be made here."""
    hosts = Hosts(f"ldm-{os.getpid()}")
    names = [f"{hosts.name}-{number}" for number in range(2)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        yield hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def why_not() -> str | None:
    """Why there can be no two hosts here; None if there can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if shutil.which("ip") is None:
        return "apt-get install iproute2"
    try:
        with joined():
            return None
    except OSError as error:
        return str(error)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
