"""What all studies share: a study computes units of work, keeps each, and writes a JSON of rows after each.

A study that is stopped goes on where it was. Its JSON names params, models and the device of every row.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ldm.compute import devices, fingerprint, state
from ldm.compute.process import Accelerator
from ldm.core import artifact, config, workspace
from ldm.core.config import Section
from ldm.core.errors import MachineError
from ldm.core.params import MachineParams
from ldm.precompute.work import keep_each
from studies.devices import processor
from studies.lab import Lab, Workers
from studies.rows import Row, summary

PARAMS = Path("studies/params.yaml")
RESULTS = Path("docs/studies")
P = TypeVar("P", bound=Section)
T = TypeVar("T")


@dataclass(frozen=True)
class Study(Generic[P]):
    """A study that has been started: its params, the lab, and where its rows go."""

    name: str
    params: P
    lab: Lab
    accelerator: Accelerator
    script: Path
    output: Path

    def run(
        self,
        work: Mapping[str, T],
        compute: Callable[[T], Mapping[str, Tensor]],
        row: Callable[[T, Mapping[str, Tensor]], Row],
        inputs: Mapping[str, str],
    ) -> str:
        """Compute the tensors of every unit that is not kept, and write the rows of those so far after each.

        work: units by name, in order. row: a unit and its tensors -> what the JSON says of it. inputs: hashes of what
        the units are made from, besides the lab. Returns a line for the log.
        """
        device = device_name(self.lab.device)
        hashes = {
            **self.lab.inputs,
            **inputs,
            "drawing": artifact.sha256_json(self.lab.drawing.model_dump(mode="json")),
        }
        made_by = fingerprint.of(str(self.script), self.params, {**hashes, "device": device})
        kept = state.Run(workspace.runs(self.lab.paths.runs), f"study_{self.name}", made_by)
        rows: list[Row] = []

        def timed(unit: T) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            start = time.monotonic()
            return compute(unit), {"seconds": round(time.monotonic() - start, 1)}

        with kept.opened(self.accelerator):
            for key, unit in work.items():
                keep_each(kept, {key: unit}, timed, self.name, "row", self.accelerator)
                done = kept.unit(key)
                rows.append({"name": key, **row(unit, done.tensors), "device": device, **done.values})
                self._write(rows, hashes)
                print(f"{self.name} {len(rows)}/{len(work)}: {summary(rows[-1])}", flush=True)
            kept.remove()
        return f"{self.name}: {len(rows)} rows -> {self.output}"

    def _write(self, rows: list[Row], inputs: Mapping[str, str]) -> None:
        """All rows so far, a line each, as a whole or not at all."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        building = self.output.with_suffix(".building")
        made_from = {"params": self.params.model_dump(mode="json"), "inputs": dict(inputs), "torch": torch.__version__}
        lines = [f"{json.dumps(name)}: {json.dumps(value, sort_keys=True)},\n" for name, value in made_from.items()]
        cells = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        building.write_text("".join(["{", *lines, f'"rows": [\n{cells}\n]}}\n']), encoding="utf-8")
        building.replace(self.output)


def start(params: type[P], name: str, script: str) -> Study[P]:
    """Read the options of the command line and the params, and load the lab.

    Raises, besides what `Lab.load` raises: ConfigError: the params are wrong. MachineError: no such device.
    """
    parser = argparse.ArgumentParser(prog=f"python -m studies.{name}", description=f"The study `{name}`.")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default a GPU if there is one")
    parser.add_argument("--params", type=Path, default=PARAMS, metavar="FILE", help=f"by default {PARAMS}")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help=f"by default {RESULTS}")
    options = parser.parse_args()
    section = config.read(params, name, options.params)
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    workers = Workers()
    accelerator = devices.start(config.read(MachineParams, "machine"))
    if options.device and accelerator.device.type != options.device:
        raise MachineError("--device", options.device, "a device of this machine", "leave it out")
    lab = Lab.load(workers, accelerator.device)
    return Study(name, section, lab, accelerator, Path(script), options.output / f"{name}.json")


def device_name(device: torch.device) -> str:
    """Model of the GPU, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
