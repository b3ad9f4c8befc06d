"""Trainings on a GPU: what holds on a CPU holds there, and what a GPU alone can show."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.compute import devices
from ldm.compute.saved import State, check, read, snapshot
from ldm.core.errors import Stopped
from ldm.core.params import MachineParams
from ldm.training import batches
from tests.stage_scripts import forget_accelerator
from tests.toy_training import Batches, Toy, accelerator, averages, params, run_toy
from tests.training_data import KEPT

ON_BOTH = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
"""A test that runs on the CPU in any case, so that it does not rot."""


def machine(**changes: Any) -> MachineParams:
    values = {"threads": 1, "num_workers": 0, "attention": "math", "compile": False} | KEPT | changes
    return MachineParams.model_validate(values)


PLAIN = machine(num_batches_ahead=0, background_saves=False)
THREADS = machine(num_batches_ahead=2, background_saves=True)


@ON_BOTH
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_that_is_stopped_ends_in_the_same_bits(tmp_path: Path, device: str, precision: str) -> None:
    """With threads and without, and where they are exchanged on the way."""
    chosen, kept = params(precision=precision, num_accumulation_steps=2, save_every_steps=3), averages()
    given: dict[str, Any] = {"kept": kept, "device": device}
    whole, history = run_toy(tmp_path / "whole", chosen, machine=PLAIN, **given)
    ways = {"plain": [PLAIN] * 3, "threads": [THREADS] * 3, "mixed": [THREADS, PLAIN, THREADS]}
    for name, machines in ways.items():
        for stop, each in zip((4, 11), machines, strict=False):
            with pytest.raises(Stopped):
                run_toy(tmp_path / name, chosen, kill_at=stop, machine=each, **given)
        toy, found = run_toy(tmp_path / name, chosen, toy=Toy(seed=3), machine=machines[-1], **given)
        assert found == history, name
        assert all(torch.equal(tensor, toy.state_dict()[key]) for key, tensor in whole.state_dict().items()), name


@ON_BOTH
def test_a_snapshot_is_of_its_moment(device: str) -> None:
    """What is computed before is in it, though the device may still be at it; what comes after is not."""
    weights = torch.zeros(2**20, device=device)
    for _ in range(100):
        weights += 1
    counts = torch.arange(3, device=device)[::2]
    copy = snapshot(State(5, {"w": weights, "counts": counts}, {"rows": [1]}))
    weights.zero_()
    assert copy.tensors["w"].device.type == "cpu" and bool((copy.tensors["w"] == 100).all())
    assert copy.tensors["counts"].tolist() == [0, 2]
    assert copy.tensors["w"].is_pinned() == (device == "cuda")


@ON_BOTH
def test_saved_states_are_those_of_their_steps(tmp_path: Path, device: str) -> None:
    """A thread that writes while the weights move writes none of what comes later."""
    chosen = params(save_every_steps=2, num_kept_states=20)
    for name, each in {"plain": PLAIN, "threads": THREADS}.items():
        kept = each.model_copy(update={"keep_finished_states": True})
        run_toy(tmp_path / name, chosen, machine=kept, device=device)
    plain, beside = (
        {path.name: read(check(path)).tensors for path in sorted((tmp_path / name).rglob("step-*")) if path.is_dir()}
        for name in ("plain", "threads")
    )
    assert len(plain) == 10 and plain.keys() == beside.keys()
    for step, tensors in plain.items():
        assert all(torch.equal(tensor, beside[step][name]) for name, tensor in tensors.items()), step


@ON_BOTH
def test_batches_come_from_pinned_memory_on_a_gpu_alone(device: str) -> None:
    chosen = params()
    coming = batches.coming(Batches(chosen), range(3), chosen, accelerator(chosen, device), THREADS)
    expected = [Batches(chosen)(step, slice(0, 8)) for step in range(3)]
    for found, wanted in zip(coming, expected, strict=True):
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        assert {tensor.is_pinned() for tensor in found.values()} == {device == "cuda"}


@pytest.mark.parametrize("is_deterministic", [True, False])
def test_the_kernels_of_a_gpu_are_those_that_the_params_ask_for(
    is_deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    cudnn = torch.backends.cudnn
    for owner, name in [(cudnn, "deterministic"), (cudnn, "benchmark"), (cudnn, "allow_tf32")]:
        monkeypatch.setattr(owner, name, not is_deterministic)
    devices.start(machine(deterministic=is_deterministic))
    assert (cudnn.deterministic, cudnn.benchmark) == (is_deterministic, not is_deterministic)
    assert not cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
def test_float32_is_not_rounded_to_ten_bits() -> None:
    """Factors that TF32 would round: 1 + 2^-12 becomes 1."""
    forget_accelerator()
    devices.start(PLAIN)
    x = torch.full((64, 64), 1 + 2**-12, device="cuda")
    kernel, image = x.reshape(64, 64, 1, 1), x[None, :, :, None]
    expected = 64 * (1 + 2**-12)

    def is_exact(product: Tensor) -> bool:
        return bool((product - expected).abs().max() < 1e-4)

    assert is_exact(x @ torch.ones_like(x)) and is_exact(torch.conv2d(image, torch.ones_like(kernel)))
