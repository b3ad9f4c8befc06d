"""Units of work: each is computed once, however often a run is stopped, and is read back as it was made."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.compute import devices, precision, process
from ldm.compute.state import Run
from ldm.core.errors import IntegrityError, Stopped
from ldm.core.params import MachineParams
from ldm.precompute import work
from tests.stage_scripts import forget_accelerator
from tests.training_data import KEPT

MACHINE = MachineParams(threads=1, num_workers=0, attention="math", compile=False, **KEPT)
WORK = {f"unit-{number}": number for number in range(5)}


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> process.Accelerator:
    forget_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return devices.start(MACHINE)


def keep(run: Run, accelerator: process.Accelerator, stop_at: int | None = None) -> list[int]:
    """The numbers that are computed, one of which asks for an end."""
    computed: list[int] = []

    def compute(number: int) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        computed.append(number)
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"x": torch.full((2,), float(number))}, {"number": number}

    with run.opened(accelerator):
        try:
            work.keep_each(run, WORK, compute, "test", "unit", accelerator)
        except Stopped:
            assert stop_at is not None
    return computed


def test_what_was_done_before_a_stop_is_not_done_again(tmp_path: Path, accelerator: process.Accelerator) -> None:
    run = Run(tmp_path, "sample", {"params.a": 1})
    assert keep(run, accelerator, stop_at=1) == [0, 1], "the unit at hand is finished"
    assert keep(run, accelerator) == [2, 3, 4]
    assert keep(run, accelerator) == []
    for key, number in WORK.items():
        unit = run.unit(key)
        assert unit.values == {"number": number} and unit.tensors["x"].tolist() == [number, number]


def test_all_units_of_a_run_have_the_precision_of_the_first(
    tmp_path: Path, accelerator: process.Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, run, other = nn.Linear(1, 1), Run(tmp_path, "sample", {"params.a": 1}), Run(tmp_path, "sample", {})
    for chosen in ("bf16", "fp32"):  # as on two machines
        monkeypatch.setattr(precision, "choose", lambda network, device, chosen=chosen: (chosen, "measured"))
        with run.opened(accelerator):
            assert devices.settle_in(run, "auto", network, accelerator) == "bf16"
            run.retain([])
    with other.opened(accelerator):
        assert devices.settle_in(other, "auto", network, accelerator) == "fp32", "another run chooses for itself"


def test_a_damaged_unit_is_refused_when_it_is_read(tmp_path: Path, accelerator: process.Accelerator) -> None:
    run = Run(tmp_path, "sample", {"params.a": 1})
    keep(run, accelerator)
    path = run.directory / "unit-unit-2/tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"unit-2: gone or damaged since it was written"):
        run.unit("unit-2")
    assert keep(run, accelerator) == [2]
    assert run.unit("unit-2").values == {"number": 2}
