"""All probes in order, and the keys of section `machine` that suit what they find."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ldm.core import config, workspace
from ldm.core.errors import ConfigError
from ldm.core.params import MachineParams, PathsParams
from ldm.tools.doctor import system
from ldm.tools.doctor.finding import Finding, Probe, examined

_WIDTH = 14


def findings(root: Path) -> Iterator[Finding]:
    """Everything that is found, while it is found. root: a repository, or any other folder."""
    machine = machine_of(root)
    probes: dict[str, Probe] = {
        "versions": lambda: system.versions(root),
        "files": lambda: system.files(root),
        "processor": lambda: system.processor(machine),
        "memory": system.memory,
        "disk": lambda: system.disks(_places(root)),
        "compiler": lambda: system.compiler(machine),
    }
    yield from examined(probes)
    yield from examined({"torch": lambda: _of_torch(machine)})


def _of_torch(machine: MachineParams | None) -> Iterator[Finding]:
    from ldm.tools.doctor import devices

    probes: dict[str, Probe] = {
        "device": devices.devices,
        "attention": lambda: devices.backends(machine),
        "precision": devices.speed,
    }
    yield from examined(probes)


def machine_of(root: Path) -> MachineParams | None:
    """Section `machine` of the repository; None: there is none, or it cannot be read."""
    try:
        return config.read(MachineParams, "machine", root / config.PARAMS)
    except ConfigError:
        return None


def _places(root: Path) -> dict[str, Path]:
    places = {"results": root}
    try:
        paths = config.read(PathsParams, "paths", root / config.PATHS)
    except ConfigError:
        return places
    return {**places, "saved states": root / workspace.runs(paths.runs)}


def line(finding: Finding) -> str:
    """A finding as it is printed, without its advice."""
    return f"{finding.name:{_WIDTH}} {finding.found}"


def section(found: Sequence[Finding], machine: MachineParams | None) -> Iterator[str]:
    """Section `machine` as it suits this machine; a remark stands where params.yaml has another value."""
    values: dict[str, Any] = {}
    for finding in found:
        values |= finding.machine
    now = {} if machine is None else machine.model_dump()
    yield "machine:"
    for key, value in values.items():
        other = f"    # now: {_yaml(now[key])}" if key in now and now[key] != value else ""
        yield f"  {key}: {_yaml(value)}{other}".rstrip()


def _yaml(value: Any) -> str:
    return json.dumps(value).strip('"')
