import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.compute import precision
from ldm.compute.saved import State, check, read
from ldm.core import artifact
from ldm.core.errors import IntegrityError, MachineError, NumericsError, Stopped
from ldm.core.params import MachineParams
from ldm.training import muon, resuming
from ldm.training.batches import rows_of_pass
from ldm.training.optimizer import ema_decay_at, learning_rate_at
from tests.toy_training import Batches, Toy, averages, params, run_toy
from tests.training_data import KEPT

MUON = {"learning_rate": 0.01, "momentum": 0.95, "num_iterations": 5}
SCRIPT = Path(__file__).with_name("toy_training.py")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a if a[name].is_floating_point())


def reference(chosen_steps: int = 20) -> tuple[dict[str, Tensor], list[float]]:
    """The same training written plainly with PyTorch's own pieces."""
    chosen, toy, averaged = params(num_steps=chosen_steps), Toy(), Toy()
    weights = [p for p in toy.parameters() if p.requires_grad]
    average = [p for p in averaged.parameters() if p.requires_grad]
    decayed = [p for p in weights if p.dim() > 1]
    flat = [p for p in weights if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99))
    losses = []
    for step in range(chosen_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, chosen)
        loss = toy(Batches(chosen)(step, slice(0, 8)))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        for kept, weight in zip(average, weights, strict=True):
            decay = ema_decay_at(step, chosen)
            kept.data = decay * kept.data + (1 - decay) * weight.data
        losses.append(loss.item())
    return averaged.state_dict(), losses


def test_training_equals_a_plain_loop(tmp_path: Path):
    toy, history = run_toy(tmp_path, params())
    expected, losses = reference()
    expected["num_seen"] = torch.tensor(20.0)
    assert largest_difference(toy.state_dict(), expected) < 1e-6
    means = [sum(losses[i : i + 3]) / len(losses[i : i + 3]) for i in range(0, 20, 3)]
    assert [row["loss"] for row in history.training] == pytest.approx(means, rel=1e-5)
    assert [row["step"] for row in history.training] == [3, 6, 9, 12, 15, 18, 20]
    assert [row["step"] for row in history.validation] == [10, 20]
    assert history.validation[-1]["loss"] == pytest.approx(
        toy.eval()(Batches(params())(10**6, slice(0, 8)))["loss"].item(), rel=1e-6
    )
    assert losses[-1] < losses[0] * 0.8


def test_every_trainable_tensor_moved_and_no_frozen_one(tmp_path: Path):
    before = {name: value.clone() for name, value in Toy().state_dict().items()}
    toy, _ = run_toy(tmp_path, params(num_steps=4))
    for name, value in toy.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("frozen"), name


def test_seed_zero_is_a_seed(tmp_path: Path):
    zero = run_toy(tmp_path / "a", params(num_steps=4, seed=0))[0].state_dict()
    again = run_toy(tmp_path / "b", params(num_steps=4, seed=0))[0].state_dict()
    other = run_toy(tmp_path / "c", params(num_steps=4, seed=1))[0].state_dict()
    assert equal(zero, again) and not equal(zero, other)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_and_ctrl_c_save_the_state(tmp_path: Path, number: int):
    with pytest.raises(Stopped, match=f"{signal.Signals(number).name} received at step 5"):
        run_toy(tmp_path, params(), kill_at=4, signal_number=number)
    assert [path.name for path in tmp_path.rglob("step-*")] == ["step-000000005"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stops", [(0,), (3, 4, 12), (19,)])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, precision: str, stops: tuple[int, ...]):
    chosen = params(precision=precision, num_accumulation_steps=2)
    whole, whole_history = run_toy(tmp_path / "whole", chosen)
    batches = Batches(chosen)
    for stop in stops:
        if stop == chosen.num_steps - 1:  # asked during the last step, the run is simply done
            continue
        with pytest.raises(Stopped, match=f"SIGTERM received at step {stop + 1}") as caught:
            run_toy(tmp_path / "stopped", chosen, batches=batches, kill_at=stop)
        assert caught.value.exit_code == 75
    # Other initial weights: all must come from the state.
    toy = Toy(seed=3) if stops != (19,) else Toy()
    stopped, history = run_toy(tmp_path / "stopped", chosen, batches=batches, toy=toy)
    assert equal(whole.state_dict(), stopped.state_dict())
    assert history == whole_history
    assert [step for step, first, _ in batches.asked if first == 0] == list(range(20)), "a step was lost or done twice"


def test_muon_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(muon, "_LEAST_SIDE", 2)
    chosen = params(muon=MUON)
    whole, history = run_toy(tmp_path / "whole", chosen)
    with pytest.raises(Stopped):
        run_toy(tmp_path / "stopped", chosen, kill_at=12)
    tensors = load_file(next((tmp_path / "stopped").rglob("*.safetensors")))
    assert {"optimizer.momentum.net.0.weight", "optimizer.exp_avg.net.0.bias"} <= tensors.keys()
    stopped, after = run_toy(tmp_path / "stopped", chosen, toy=Toy(seed=3))
    assert equal(whole.state_dict(), stopped.state_dict()) and after == history


AHEAD = MachineParams(
    threads=1,
    num_workers=0,
    attention="math",
    compile=False,
    **KEPT | {"num_batches_ahead": 2, "background_saves": True},
)
"""Threads build batches and write states."""


def test_threads_change_no_bit_and_lose_no_step(tmp_path: Path):
    """Batches built ahead of a stop are forgotten; the state is on the disk when the training says that it stopped."""
    chosen = params(num_accumulation_steps=2, save_every_steps=2)
    whole, whole_history = run_toy(tmp_path / "whole", chosen)
    for stop in (5, 12):
        with pytest.raises(Stopped, match="SIGTERM received"):
            run_toy(tmp_path / "ahead", chosen, kill_at=stop, machine=AHEAD)
        newest = max(tmp_path.glob("ahead/toy/*/step-*"))
        assert stop - 2 < check_step(newest) <= stop + 1, "batches are built at most two passes ahead"
    batches = Batches(chosen)
    toy, history = run_toy(tmp_path / "ahead", chosen, batches=batches, toy=Toy(seed=3), machine=AHEAD)
    assert equal(whole.state_dict(), toy.state_dict()) and history == whole_history
    rows = [slice(0, 4), slice(4, 8)]
    first = batches.asked[0][0]
    assert batches.asked == [(step, each.start, each.stop) for step in range(first, 20) for each in rows]


def check_step(directory: Path) -> int:
    """The step of a state that verifies."""
    return read(check(directory)).step


def test_an_error_of_a_batch_ahead_comes_at_its_step(tmp_path: Path):
    class Broken(Batches):
        def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
            if step == 6:
                raise IntegrityError("shard", "gone", "a shard", "fix")
            return super().__call__(step, rows)

    chosen = params(save_every_steps=1)
    with pytest.raises(IntegrityError, match="gone"):
        run_toy(tmp_path, chosen, batches=Broken(chosen), machine=AHEAD)
    assert check_step(max(tmp_path.glob("toy/*/step-*"))) == 6


@pytest.mark.parametrize("stays_full", [True, False])
def test_a_state_that_a_thread_cannot_write_is_followed_by_one_that_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stays_full: bool
):
    real = artifact.write_tensors

    def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        step = int(path.parent.name.split(".")[1].removeprefix("step-"))
        if step == 14 or (stays_full and step > 14):
            raise OSError(28, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(artifact, "write_tensors", write)
    with pytest.raises(MachineError if stays_full else Stopped):
        run_toy(tmp_path, params(), machine=AHEAD, kill_at=17)
    left = sorted(map(check_step, tmp_path.glob("toy/*/step-*")))
    assert left[0] == 7 and (left[1:] == [] if stays_full else 14 < left[1] < 20)


def test_auto_is_chosen_once_and_kept_on_a_machine_that_would_choose_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen, ways = params(precision="auto"), dict[str, Any]()
    for named in ("fp32", "bf16"):
        ways[named], history = run_toy(tmp_path / named, params(precision=named))
        assert history.facts == {"precision": named}
    assert not equal(ways["fp32"].state_dict(), ways["bf16"].state_dict())
    choices = iter(["bf16", "fp32", "fp32"])
    monkeypatch.setattr(precision, "choose", lambda network, device: (next(choices), "measured"))
    with pytest.raises(Stopped):
        run_toy(tmp_path / "auto", chosen, kill_at=4)
    toy, history = run_toy(tmp_path / "auto", chosen, toy=Toy(seed=3))
    assert equal(toy.state_dict(), ways["bf16"].state_dict()) and history.facts == {"precision": "bf16"}
    toy, history = run_toy(tmp_path / "afresh", chosen)
    assert equal(toy.state_dict(), ways["fp32"].state_dict()) and history.facts == {"precision": "fp32"}


def test_values_that_change_no_step_may_change_on_the_way(tmp_path: Path):
    """The weights end in the bits of the run that was not stopped; rows of the curve end where they now should."""
    whole, _ = run_toy(tmp_path / "whole", params(num_steps=24))
    changes: list[dict[str, Any]] = [
        {},
        {"save_every_steps": 3, "num_kept_states": 1},
        {"log_every_steps": 5, "validate_every_steps": 4},
        {"log_every_steps": 2, "max_nonfinite_steps": 9},
    ]
    bad = {15: 0}
    for stop, change in zip((4, 10, 16), changes, strict=False):
        with pytest.raises(Stopped):
            chosen = params(num_steps=24, **change)
            run_toy(tmp_path / "stopped", chosen, batches=Batches(chosen, bad), kill_at=stop)
    last = params(num_steps=24, **changes[-1])
    batches = Batches(last, bad)
    toy, history = run_toy(tmp_path / "stopped", last, batches=batches, toy=Toy(seed=3))
    assert batches.asked[0][0] == 17
    assert [row["step"] for row in history.training] == [3, 6, 9, 15, 18, 20, 22, 24]
    assert history.skipped == [{"step": 16, "keys": Batches(last).keys(15)}]
    without, _ = run_toy(tmp_path / "bad", params(num_steps=24), batches=Batches(params(), bad))
    assert equal(toy.state_dict(), without.state_dict()) and not equal(toy.state_dict(), whole.state_dict())
    assert not any("step" in found for found in history.resumed_from)


def test_rows_of_a_curve_are_means_over_their_own_steps(tmp_path: Path):
    _, each = run_toy(tmp_path / "each", params(log_every_steps=1))
    with pytest.raises(Stopped):
        run_toy(tmp_path / "two", params(log_every_steps=8), kill_at=6)
    _, history = run_toy(tmp_path / "two", params(log_every_steps=5))
    losses = [row["loss"] for row in each.training]
    ends = [0, 10, 15, 20]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(ends)]
    assert [row["loss"] for row in history.training] == pytest.approx(means, rel=1e-5)


def ask(root: Path, name: str = "step-*") -> Path:
    """What `ldm resume` does with the newest state of that name."""
    newest = max(
        (path for path in root.rglob(name) if path.is_dir()), key=lambda path: (path.name, path.stat().st_mtime)
    )
    asked = {"state": f"{newest.parent.name}/{newest.name}", "manifest_sha256": check(newest).manifest_sha256}
    (newest.parents[1] / "resume.json").write_text(json.dumps(asked))
    return newest


def test_a_run_goes_on_under_other_params_if_it_is_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(Stopped):
        run_toy(tmp_path, params(), kill_at=8)
    saved = ask(tmp_path)
    lower = params(learning_rate=1e-3)
    with pytest.raises(Stopped):
        run_toy(tmp_path, lower, kill_at=12)
    batches = Batches(lower)
    _, history = run_toy(tmp_path, lower, batches=batches, toy=Toy(seed=3))
    assert batches.asked[0][0] == 13, "later saves belong to the same run"
    assert [row["learning_rate"] for row in history.training[3:]] == pytest.approx(
        [learning_rate_at(row["step"] - 1, lower) for row in history.training[3:]]
    )
    sha256 = check(saved).manifest_sha256
    differs = {"params.learning_rate": [0.01, 0.001]}
    assert history.resumed_from == [{"step": 9, "manifest_sha256": sha256, "differs": differs}]
    assert history.facts == {"precision": "fp32", "resumed_from": history.resumed_from}
    assert "as `ldm resume` asked" in capsys.readouterr().out


def test_a_state_past_the_last_step_or_of_another_model_is_refused() -> None:
    own = State(3, {"weights.a": torch.zeros(2), "bad": torch.zeros(4, dtype=torch.int64)}, {})
    record = {"step": 3, "differs": {"params.num_steps": [3, 5]}}
    assert resuming.accepted(own, params(num_steps=3, num_warmup_steps=1), own, record).values == {
        "resumed_from": [record]
    }
    with pytest.raises(IntegrityError, match="step 3; expected at most num_steps 2"):
        resuming.accepted(own, params(num_steps=2, num_warmup_steps=1), own, record)
    other = State(3, {**own.tensors, "weights.a": torch.zeros(3)}, {})
    with pytest.raises(IntegrityError, match=r"weights\.a of shape \[3\], and 0 more"):
        resuming.accepted(own, params(), other, record)


def test_a_finished_training_is_extended(tmp_path: Path):
    """As one of the longer schedule that stood at these weights after 20 steps; its own end is a row of the curve."""
    run_toy(tmp_path, params())
    ask(tmp_path, "step-000000020")
    longer = params(num_steps=30)
    batches = Batches(longer)
    _, history = run_toy(tmp_path, longer, batches=batches)
    assert [step for step, _, _ in batches.asked] == list(range(20, 30))
    assert [row["step"] for row in history.training][6:] == [20, 21, 24, 27, 30]
    assert history.training[-1]["learning_rate"] == learning_rate_at(29, longer)
    assert history.resumed_from[0]["differs"] == {"params.num_steps": [20, 30]}


@pytest.mark.parametrize("every", [3, 5, 50])
def test_a_run_may_end_at_the_step_of_a_saved_state(tmp_path: Path, every: int):
    """What was not said to be the last step when it was taken has no row and no validation yet."""
    longer = {"log_every_steps": 4, "validate_every_steps": every}
    with pytest.raises(Stopped, match="at step 5"):
        run_toy(tmp_path, params(**longer), kept=averages(every_steps=3, result=0.05), kill_at=4)
    ask(tmp_path)
    shorter = params(num_steps=5, **longer)
    toy, history = run_toy(tmp_path, shorter, toy=Toy(seed=3), kept=averages(every_steps=3, result=0.05))
    assert [row["step"] for row in history.training] == [4, 5]
    assert [row["step"] for row in history.validation] == ([3, 5] if every == 3 else [5])
    again = toy(Batches(params())(10**6, slice(0, 8)))["loss"].item()
    assert history.validation[-1]["loss"] == pytest.approx(again, rel=1e-6)


@pytest.mark.parametrize("before", [None, MUON])
def test_a_run_goes_on_with_another_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, float] | None
):
    """It starts the moments of its own; those of the other are forgotten."""
    monkeypatch.setattr(muon, "_LEAST_SIDE", 2)
    with pytest.raises(Stopped):
        run_toy(tmp_path, params(muon=before), kill_at=8)
    ask(tmp_path)
    with pytest.raises(Stopped):
        run_toy(tmp_path, params(muon=None if before else MUON), kill_at=12)
    tensors = load_file(max(tmp_path.rglob("step-000000013/*.safetensors")))
    of_kernel = {name.split(".")[1] for name in tensors if name.startswith("optimizer.") and "net.0.weight" in name}
    assert of_kernel == ({"step", "exp_avg", "exp_avg_sq"} if before else {"momentum"})


def test_what_broke_a_run_may_be_changed(tmp_path: Path):
    """The fix that the error names: its states count the bad updates, which must not end the next run at once."""
    bad = {step: 0 for step in (10, 11, 12)}
    with pytest.raises(NumericsError, match="then `ldm resume STATE`"):
        run_toy(tmp_path, params(save_every_steps=13, log_every_steps=14), batches=Batches(params(), bad=bad))
    assert ask(tmp_path).name == "step-000000013"
    lower = params(learning_rate=1e-3, save_every_steps=13, log_every_steps=14)
    _, history = run_toy(tmp_path, lower, batches=Batches(lower))
    assert [row["step"] for row in history.skipped] == [11, 12, 13] and history.training[-1]["step"] == 20


@pytest.mark.parametrize("is_other_model", [True, False])
def test_a_state_that_does_not_fit_is_refused(tmp_path: Path, is_other_model: bool):
    run_toy(tmp_path, params())
    ask(tmp_path)
    toy = Toy()
    if is_other_model:
        toy.net[0] = torch.nn.Conv2d(4, 8, 1)
    words = r"weights.net.0.weight of shape \[8, 4, 3, 3\].*expected \[8, 4, 1, 1\]" if is_other_model else "step 20"
    with pytest.raises(IntegrityError, match=words):
        run_toy(tmp_path, params(num_steps=25 if is_other_model else 15), toy=toy)


def test_a_killed_run_goes_on_from_its_last_saved_state(tmp_path: Path):
    chosen = params()
    whole, history = run_toy(tmp_path / "whole", chosen)

    class Killed(Batches):
        def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
            if step == 16:
                raise KeyboardInterrupt
            return super().__call__(step, rows)

    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "killed", chosen, batches=Killed(chosen))
    batches = Batches(chosen)
    resumed, resumed_history = run_toy(tmp_path / "killed", chosen, batches=batches, toy=Toy(seed=3))
    assert batches.asked[0][0] == 14
    assert equal(resumed.state_dict(), whole.state_dict())
    assert resumed_history == history


def test_a_finished_run_is_not_trained_again(tmp_path: Path):
    first, history = run_toy(tmp_path, params())
    batches = Batches(params())
    again, history_again = run_toy(tmp_path, params(), batches=batches)
    assert batches.asked == [] and history_again == history
    assert equal(first.state_dict(), again.state_dict())


def test_accumulation_agrees(tmp_path: Path):
    once, history = run_toy(tmp_path, params(log_every_steps=1))
    batches = Batches(params())
    twice, history_twice = run_toy(tmp_path, params(num_accumulation_steps=2, log_every_steps=1), batches=batches)
    assert batches.asked[:2] == [(0, 0, 4), (0, 4, 8)]
    for a, b in zip(history.training, history_twice.training, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    twice.num_seen /= 2
    assert largest_difference(once.state_dict(), twice.state_dict()) < 1e-5


def test_passes_of_all_processes_make_up_the_global_batch():
    rows = [range(24)[rows_of_pass(number, rank, 3, 4)] for number in range(2) for rank in range(3)]
    assert [row for part in rows for row in part] == list(range(24))


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(MachineError, match="3 processes with num_accumulation_steps 1"):
        run_toy(tmp_path, params())


def test_a_nonfinite_loss_is_never_applied(tmp_path: Path):
    """Steps with an infinite loss leave no trace but their count: weights equal a run that never took them."""
    toy, history = run_toy(tmp_path, params(ema_decay=0.0), batches=Batches(params(), bad={19: 3}))
    expected, _ = run_toy(tmp_path / "b", params(ema_decay=0.0, save_every_steps=19))
    assert all(torch.isfinite(value).all() for value in toy.state_dict().values())
    folder = next(p for p in (tmp_path / "b").rglob("step-000000019") if p.is_dir())
    saved = load_file(folder / "tensors.safetensors")
    for name, value in toy.named_parameters():
        if value.requires_grad:
            assert torch.equal(value, saved[f"weights.{name}"]), name
    assert history.training[-1]["num_skipped"] == 1
    assert history.skipped == [{"step": 20, "keys": Batches(params()).keys(19)}]
    assert math.isfinite(history.training[-1]["loss"])
    assert not equal(expected.state_dict(), toy.state_dict())


@pytest.mark.parametrize("num_accumulation_steps", [1, 2])
def test_a_nonfinite_loss_with_finite_gradients_is_never_applied(tmp_path: Path, num_accumulation_steps: int):
    """An infinite part of the loss that no weight can change, in half of a batch."""
    chosen = params(num_accumulation_steps=num_accumulation_steps)

    def batches(step: int, rows: slice) -> dict[str, Tensor]:
        batch = Batches(chosen)(step, rows)
        return batch | {"offset": torch.full(batch["factor"].shape, torch.inf if step == 5 and not rows.start else 0.0)}

    class Offset(Toy):
        def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
            scalars = super().forward(batch)
            return scalars | {"loss": scalars["loss"] + batch.get("offset", torch.zeros(1)).mean()}

    _, history = run_toy(tmp_path, chosen, toy=Offset(), batches=batches)
    assert [row["step"] for row in history.skipped] == [6]


def test_samples_of_skipped_updates_are_named_also_after_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = {4: 0, 6: 2, 13: 1}
    _, whole = run_toy(tmp_path / "whole", params(), batches=Batches(params(), bad=bad))
    assert [(row["step"], row["keys"][0]) for row in whole.skipped] == [(s + 1, f"sample-{s}-0") for s in bad]
    assert "step 7: loss or gradient not finite, update skipped; samples sample-6-0, sample" in capsys.readouterr().out
    with pytest.raises(Stopped):
        run_toy(tmp_path / "stopped", params(), batches=Batches(params(), bad=bad), kill_at=6)
    assert run_toy(tmp_path / "stopped", params(), batches=Batches(params(), bad=bad))[1] == whole


def test_too_many_nonfinite_updates_in_a_row_end_the_run(tmp_path: Path):
    bad = {step: 0 for step in (2, 3, 8, 9, 10)}
    with pytest.raises(NumericsError, match="3 updates in a row up to step 11") as caught:
        run_toy(tmp_path, params(), batches=Batches(params(), bad=bad))
    assert caught.value.exit_code == 6
    run_toy(tmp_path / "b", params(max_nonfinite_steps=4), batches=Batches(params(), bad=bad))


def test_the_decision_is_the_same_after_a_resume(tmp_path: Path):
    batches = Batches(params(), bad={8: 0, 9: 0, 10: 0})
    with pytest.raises(Stopped):
        run_toy(tmp_path, params(), batches=batches, kill_at=9)
    with pytest.raises(NumericsError, match="3 updates in a row up to step 11"):
        run_toy(tmp_path, params(), batches=batches)


def launch(out: Path, scenarios: dict[str, dict[str, Any]], started: Path | None = None) -> None:
    """Run the toy's scenarios in two real processes; they go on from what was `started` in another folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copytree(started, out) if started else out.mkdir()
    (out / "scenarios.json").write_text(json.dumps(scenarios))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", str(port), str(SCRIPT), str(out)]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_agree_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """20 steps; one batch is bad on one of the two processes, and in fp32 one of them is told to stop at step 6. The
    result of another run is made of averages that it kept, and one more is trained by Muon, each matrix by one of
    them."""
    bad, tolerances = {4: 7}, {"fp32": 1e-5, "bf16": 2e-3}
    changes = {named: {"precision": named, "log_every_steps": 1} for named in tolerances}
    stop = {"fp32": {"kill_at": 6}, "bf16": {}}
    scenarios = {name: {**changes[name], "bad": bad, **stop[name]} for name in tolerances}
    averaging = {"averages": {"every_steps": 4, "result": 0.08}}
    # The second process would choose fp32.
    others = {"auto": {**scenarios["bf16"], "precision": "auto"}, "muon": {"muon": MUON}}
    launch(tmp_path / "two", {**scenarios, "averaged": averaging, **others})
    monkeypatch.setattr(muon, "_LEAST_SIDE", 2)
    by_muon, _ = run_toy(tmp_path / "one-muon", params(muon=MUON))
    assert largest_difference(by_muon.state_dict(), load_file(tmp_path / "two/muon.safetensors")) < 1e-4
    averaged, _ = run_toy(tmp_path / "one-averaged", params(), kept=averages(every_steps=4, result=0.08))
    assert largest_difference(averaged.state_dict(), load_file(tmp_path / "two/averaged.safetensors")) < 1e-3
    assert equal(load_file(tmp_path / "two/auto.safetensors"), load_file(tmp_path / "two/bf16.safetensors"))
    for name, tolerance in tolerances.items():
        chosen = params(**changes[name])
        one, history = run_toy(tmp_path / f"one-{name}", chosen, batches=Batches(chosen, bad))
        training, validation = json.loads((tmp_path / "two" / f"{name}.json").read_text())
        for a, b in zip([*history.training, *history.validation], [*training, *validation], strict=True):
            assert a["step"] == b["step"]
            assert a["loss"] == pytest.approx(b["loss"], abs=tolerance, nan_ok=True)
        assert [row["num_skipped"] for row in training] == [0] * 4 + [1] * 16
        two = load_file(tmp_path / "two" / f"{name}.safetensors")
        assert largest_difference(one.state_dict(), two) < tolerance
