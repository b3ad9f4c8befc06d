"""A training of a second or less, used in one process by test_training_loop.py and, as a script, in several.

Script: `toy_training.py OUT` reads OUT/scenarios.json (name -> changed params, `bad` and `kill_at`), and writes
OUT/NAME.safetensors and OUT/NAME.json for each; a scenario that is stopped is started again.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm that stands beside this script

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm import randomness
from ldm.compute import fingerprint, launcher, precision
from ldm.compute.state import Run
from ldm.core.errors import Stopped
from ldm.core.params import MachineParams
from ldm.training import muon
from ldm.training.history import History
from ldm.training.loop import Picture, train
from ldm.training.params import AveragesParams, TrainingParams

DEFAULTS = {
    "num_steps": 20,
    "batch_size": 8,
    "num_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "betas": [0.9, 0.99],
    "weight_decay": 0.01,
    "muon": None,
    "num_warmup_steps": 3,
    "final_learning_rate_fraction": 0.1,
    "max_grad_norm": 0.5,
    "ema_decay": 0.9,
    "precision": "fp32",
    "seed": 0,
    "log_every_steps": 3,
    "validate_every_steps": 10,
    "save_every_steps": 7,
    "num_kept_states": 2,
    "max_nonfinite_steps": 3,
    "loss_band": None,
}


def params(**changes: object) -> TrainingParams:
    return TrainingParams.model_validate_json(json.dumps(DEFAULTS | changes), strict=True)


def averages(**changes: object) -> AveragesParams:
    values = {"lengths": [0.05, 0.1], "every_steps": 20, "result": None}
    return AveragesParams.model_validate_json(json.dumps(values | changes), strict=True)


class ToyNetwork(nn.Sequential):
    """Layers that can be split over processes."""

    def blocks(self) -> list[nn.Module]:
        return [self[0], self[3]]


class Toy(nn.Module):
    """A small convolutional regression with a frozen part and a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1234)
            self.frozen = nn.Conv2d(2, 4, 1).requires_grad_(False)
            torch.manual_seed(seed)
            self.net = ToyNetwork(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 2, 3))
        self.register_buffer("num_seen", torch.zeros(()))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.training:
            self.num_seen += 1
        error = self.net(self.frozen(batch["x"])) - batch["y"]
        return {"loss": error.square().mean() * batch["factor"].mean(), "l1": error.abs().mean()}


class Batches:
    """Noise and targets of any step; steps in `bad` have one infinite entry, in the row given."""

    def __init__(self, chosen: TrainingParams, bad: Mapping[int, int] | None = None) -> None:
        self.params, self.bad = chosen, bad or {}
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, step: int, rows: slice) -> dict[str, Tensor]:
        self.asked.append((step, rows.start, rows.stop))
        x = torch.randn(self.params.batch_size, 2, 6, 6, generator=randomness.generator(self.params.seed, "x", step))
        factor = torch.ones(self.params.batch_size)
        if step in self.bad:
            factor[self.bad[step]] = torch.inf
        return {"x": x[rows], "y": x[rows, :, 1:-1, 1:-1].cumsum(-1), "factor": factor[rows]}

    def keys(self, step: int) -> list[str]:
        return [f"sample-{step}-{row}" for row in range(self.params.batch_size)]


def accelerator(chosen: TrainingParams, device: str = "cpu") -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    with launcher.whole_models():
        return Accelerator(cpu=device == "cpu", gradient_accumulation_steps=chosen.num_accumulation_steps)


def run_toy(
    root: Path,
    chosen: TrainingParams,
    *,
    toy: Toy | None = None,
    batches: Batches | None = None,
    kept: AveragesParams | None = None,
    kill_at: int = -1,
    signal_number: int = signal.SIGTERM,
    code: str = "1",
    machine: MachineParams | None = None,
    picture: Picture | None = None,
    device: str = "cpu",
) -> tuple[Toy, History]:
    """Train to the end, or until a signal reaches this process while it draws the batch of step `kill_at`.

    code: stands for the hash of a module. machine, picture: as of `Run` and `train`.
    """
    toy, batches = (toy or Toy()).to(device), batches or Batches(chosen)

    keys = getattr(batches, "keys", Batches(chosen).keys)

    def batch_at_step(step: int, rows: slice) -> dict[str, Tensor]:
        if step == kill_at:
            os.kill(os.getpid(), signal_number)
        return batches(step, rows)

    def validate(objective: nn.Module) -> dict[str, float]:
        drawn = Batches(chosen)(10**6, slice(0, chosen.batch_size))
        batch = {name: value.to(device) for name, value in drawn.items()}
        return {name: value.item() for name, value in objective(batch).items()}

    run = Run(root, "toy", {**made_by(chosen, kept), "code.toy": code}, machine)
    given = (toy, batch_at_step, keys, chosen, accelerator(chosen, device), run)
    try:
        history = train(*given, validate=validate, picture=picture, averages=kept, name="toy")
    finally:
        run.close()
    return toy, history


def made_by(chosen: TrainingParams, kept: AveragesParams | None) -> dict[str, Any]:
    return {**fingerprint.of_params(chosen), **(fingerprint.of_params(kept) if kept else {})}


def run_scenario(out: Path, name: str, given: dict[str, Any]) -> None:
    """The second process is the one that is told to stop."""
    is_main = os.environ.get("RANK", "0") == "0"
    kill_at = given.pop("kill_at", -1)
    bad = {int(step): row for step, row in given.pop("bad", {}).items()}
    kept = averages(**given.pop("averages")) if "averages" in given else None
    chosen = params(**given)
    if kill_at >= 0:
        with suppress(Stopped):
            run_toy(out / name, chosen, batches=Batches(chosen, bad), kept=kept, kill_at=-1 if is_main else kill_at)
            raise AssertionError("it was not stopped")
    # After a stop all weights must come from the state.
    toy = Toy(seed=3 if kill_at >= 0 else 0)
    toy, history = run_toy(out / name, chosen, toy=toy, batches=Batches(chosen, bad), kept=kept)
    if is_main:
        save_file(toy.state_dict(), out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps([history.training, history.validation]))


def main() -> None:
    out = Path(sys.argv[1])
    # What auto comes to is another thing on each process.
    precision.choose = lambda network, device: (("bf16", "fp32")[int(os.environ.get("RANK", "0"))], "test")
    muon._LEAST_SIDE = 2  # so that the toy's kernels are matrices for it
    torch.set_num_threads(1)
    for name, given in json.loads((out / "scenarios.json").read_text()).items():
        run_scenario(out, name, given)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
