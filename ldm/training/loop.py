"""The one training loop: accumulation, clipping, averaged weights, validation, exact resume, orderly stop.

The loop holds no random state and no position in the data: a batch is a pure function of the step, so a saved run is
its tensors and one integer. Nothing waits for the device between two rows of the log.
"""

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ldm.compute import attention, ranks
from ldm.compute.state import Run, State
from ldm.compute.stopping import StopRequest
from ldm.core.errors import IntegrityError, MachineError, NumericsError, Stopped
from ldm.core.progress import Progress
from ldm.training.history import History, Row
from ldm.training.params import TrainingParams

BatchAtStep = Callable[[int, slice], dict[str, Tensor]]
KeysAtStep = Callable[[int], list[str]]
Validate = Callable[[nn.Module], dict[str, float]]
Picture = Callable[[nn.Module, Path], None]

_NUM_STEPS_BETWEEN_STOP_CHECKS = 16
_NUM_SHOWN_KEYS = 8
_NUM_COMPARED_BATCHES = 3


def learning_rate_at(step: int, params: TrainingParams) -> float:
    """Rate of the update from `step` to `step + 1`: linear warm-up, then half a cosine (Loshchilov and Hutter 2017)."""
    if step < params.num_warmup_steps:
        return params.learning_rate * (step + 1) / params.num_warmup_steps
    progress = (step - params.num_warmup_steps) / (params.num_steps - params.num_warmup_steps)
    floor = params.final_learning_rate_fraction
    return params.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def ema_decay_at(step: int, params: TrainingParams) -> float:
    """Decay of the averaged weights at the update from `step` to `step + 1`; early averages forget the start faster."""
    return min(params.ema_decay, (1 + step) / (10 + step))


class _AdamW(torch.optim.AdamW):
    """AdamW whose fused kernel leaves weights, moments and step counts alone where `found_inf` is 1."""

    found_inf: Tensor


class _Loop:
    """The state of one training and what is done to it. `step` counts the updates done."""

    def __init__(
        self,
        objective: nn.Module,
        batch_at_step: BatchAtStep,
        keys_at_step: KeysAtStep,
        params: TrainingParams,
        accelerator: Accelerator,
    ) -> None:
        asked = ("no" if params.precision == "fp32" else params.precision, params.num_accumulation_steps)
        given = (accelerator.mixed_precision, accelerator.gradient_accumulation_steps)
        assert given == asked, f"the accelerator was started with {given}, the params ask for {asked}"
        self.objective, self.batch_at_step, self.keys_at_step = objective, batch_at_step, keys_at_step
        self.params, self.accelerator = params, accelerator
        self.num_rows = rows_per_pass(params, accelerator)
        self.model: nn.Module = accelerator.prepare_model(objective.train())
        self.weights = {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
        self.ema = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.optimizer = _make_optimizer(list(self.weights.values()), params)
        # Updates with a non-finite loss or gradient: in all, in a row now, most in a row, and the last one's step.
        self.bad = torch.zeros(4, dtype=torch.int64, device=accelerator.device)
        self.sums: dict[str, Tensor] = {}
        self.step = 0
        self.history = History([], [], [], [])
        self._open_row()

    def update(self) -> None:
        """One optimizer update from one global batch, or none at all if its loss or gradient is not finite."""
        learning_rate = learning_rate_at(self.step, self.params)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        scalars = self._gradients()
        norm = self.accelerator.clip_grad_norm_(list(self.weights.values()), self.params.max_grad_norm)
        assert norm is not None
        is_good = torch.isfinite(norm)
        self.optimizer.found_inf = (~is_good).float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        average = get_ema_multi_avg_fn(ema_decay_at(self.step, self.params))
        average(list(self.ema.values()), [weight.detach() for weight in self.weights.values()], self.step)
        self.step += 1
        self._count(is_good, {**scalars, "grad_norm": norm})

    def _gradients(self) -> dict[str, Tensor]:
        """Gradients of the mean loss over the global batch; returns this process's means of the scalars."""
        num_passes, sums = self.params.num_accumulation_steps, dict[str, Tensor]()
        for i in range(num_passes):
            rows = rows_of_pass(i, self.accelerator.process_index, self.accelerator.num_processes, self.num_rows)
            batch = self.batch_at_step(self.step, rows)
            batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
            with self.accelerator.accumulate(self.model):
                scalars: dict[str, Tensor] = self.model(batch)
                loss = scalars["loss"]
                # A non-finite loss can have finite gradients, and on one process only: make every gradient NaN, so that
                # all processes, which see the same summed gradients, take the same decision without another exchange.
                self.accelerator.backward(loss * torch.where(torch.isfinite(loss), 1.0, torch.nan).detach())
            for name, value in scalars.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / num_passes
        return sums

    def _count(self, is_good: Tensor, scalars: Mapping[str, Tensor]) -> None:
        in_all, in_row, most, last = self.bad.unbind()
        in_row = torch.where(is_good, 0, in_row + 1)
        last = torch.where(is_good, last, self.step)
        self.bad = torch.stack([in_all + ~is_good, in_row, torch.maximum(most, in_row), last])
        self.is_bad[self.step - 1 - self._row_start] = ~is_good
        for name, value in {**scalars, "num_good": torch.ones_like(scalars["loss"])}.items():
            self.sums[name] = self.sums.get(name, 0) + torch.where(is_good, value, 0)

    def _open_row(self) -> None:
        """Start a row of the curve: scalars are summed again, and no update of it was bad."""
        self.sums = {}
        self.is_bad = torch.zeros(self.params.log_every_steps, dtype=torch.bool, device=self.accelerator.device)

    @property
    def _row_start(self) -> int:
        """Updates before the first one of the row that is open."""
        return int(self.history.training[-1]["step"]) if self.history.training else 0

    def agree(self, is_asked: bool) -> bool:
        """Whether any process was asked to stop; the scalars of all processes are averaged on the same occasion."""
        if self.accelerator.num_processes == 1:
            return is_asked
        asked = torch.full((), float(is_asked), device=self.accelerator.device)
        vector = torch.stack([asked, *self.sums.values()])
        vector = torch.as_tensor(self.accelerator.reduce(vector, "mean"))
        self.sums = dict(zip(self.sums, vector[1:].unbind(), strict=True))
        is_cheap = self.accelerator.device.type == "cpu" or self.step % _NUM_STEPS_BETWEEN_STOP_CHECKS == 0
        return is_cheap and vector[0].item() > 0

    def log(self) -> Row:
        """Close a row of the curve.

        NumericsError: too many updates in a row had a non-finite loss or gradient.
        """
        names = [name for name in self.sums if name != "num_good"]
        values: list[float] = torch.stack([self.sums[name] for name in names]).div(self.sums["num_good"]).tolist()
        in_all, _, most, last = self.bad.tolist()
        learning_rate = learning_rate_at(self.step - 1, self.params)
        row: Row = {"step": self.step, **dict(zip(names, values, strict=True)), "learning_rate": learning_rate}
        self._log_skipped()
        self.history.training.append({**row, "num_skipped": in_all})
        self._open_row()
        if most >= self.params.max_nonfinite_steps:
            found = f"{most} updates in a row up to step {last} had a non-finite loss or gradient"
            expected = f"fewer than max_nonfinite_steps {self.params.max_nonfinite_steps}"
            fix = "lower learning_rate or set precision: fp32, then `ldm resume STATE` with one that `ldm runs` lists"
            raise NumericsError("training", found, expected, fix)
        return row

    def _log_skipped(self) -> None:
        for offset in torch.nonzero(self.is_bad).flatten().tolist():
            step = self._row_start + offset
            keys = self.keys_at_step(step)
            self.history.skipped.append({"step": step + 1, "keys": keys})
            more = f" and {len(keys) - _NUM_SHOWN_KEYS} more" if len(keys) > _NUM_SHOWN_KEYS else ""
            told = f"step {step + 1}: loss or gradient not finite, update skipped; samples"
            self.accelerator.print(f"{told} {', '.join(keys[:_NUM_SHOWN_KEYS])}{more}", flush=True)

    @contextmanager
    def averaged(self) -> Generator[None]:
        """The averaged weights are in the objective, in evaluation mode, without gradients."""
        self.swap()
        self.objective.eval()
        with torch.no_grad(), self.accelerator.autocast():
            yield
        self.objective.train()
        self.swap()

    def swap(self) -> None:
        """Exchange weights and averaged weights."""
        for name, weight in self.weights.items():
            weight.data, self.ema[name] = self.ema[name], weight.data

    def state(self) -> State:
        """Everything the next update depends on, and the history."""
        tensors = {f"weights.{name}": weight.detach() for name, weight in self.weights.items()}
        tensors |= {f"ema.{name}": weight for name, weight in self.ema.items()}
        tensors |= {f"buffers.{name}": buffer for name, buffer in self._buffers().items()}
        for name, weight in self.weights.items():
            tensors |= {f"optimizer.{key}.{name}": value for key, value in self.optimizer.state[weight].items()}
        tensors |= {f"sums.{name}": value for name, value in self.sums.items()} | {"bad": self.bad}
        tensors["is_bad"] = self.is_bad
        values = asdict(self.history)
        return State(self.step, tensors, {**values, "sums": list(self.sums), "machine": self._machine()})

    def restore(self, state: State) -> None:
        """Go on from a state."""
        for name, tensor in state.tensors.items():
            kind, _, key = name.partition(".")
            if kind in ("weights", "ema", "buffers"):
                {"weights": self.weights, "ema": self.ema, "buffers": self._buffers()}[kind][key].data.copy_(tensor)
            elif kind == "optimizer":
                part, _, weight_name = key.partition(".")
                weight = self.weights[weight_name]
                self.optimizer.state[weight][part] = tensor.to(weight.device)
        device = self.accelerator.device
        self.history = History(**{field.name: state.values[field.name] for field in fields(History)})
        self.step = state.step
        self._open_row()
        self.sums = {name: state.tensors[f"sums.{name}"].to(device) for name in state.values["sums"]}
        self.bad = state.tensors["bad"].to(device)
        # The open row may be longer than log_every_steps, if that was changed: it ends at the next multiple.
        done = state.tensors["is_bad"][: self.step - self._row_start].to(device)
        self.is_bad = torch.cat([done, self.is_bad])
        if state.values["machine"] != self._machine():
            saved = f"saved with {state.values['machine']}, going on with {self._machine()}"
            self.accelerator.print(f"{saved}: equal up to rounding, not in every bit", flush=True)

    def take(self, state: State, told: dict[str, Any]) -> State:
        """What this training goes on from when it is asked to take over a state of another run.

        told: step and hash of the state and what differs, for the history. IntegrityError: it is a state of another
        model, or past the last step.
        """
        ours = {name: list(tensor.shape) for name, tensor in self.state().tensors.items() if _is_of_model(name)}
        theirs = {name: list(tensor.shape) for name, tensor in state.tensors.items() if _is_of_model(name)}
        other = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        fix = "undo what differs (`ldm runs` shows it), name another state, or remove resume.json to start afresh"
        if other:
            found = f"{other[0]} of shape {theirs.get(other[0])}, and {len(other) - 1} more that do not fit"
            raise IntegrityError("the state that `ldm resume` named", found, str(ours.get(other[0])), fix)
        if state.step > self.params.num_steps:
            expected = f"at most num_steps {self.params.num_steps}"
            raise IntegrityError("the state that `ldm resume` named", f"step {state.step}", expected, fix)
        if not told["differs"]:
            return state
        bad = state.tensors["bad"].clone()
        bad[1:3] = 0  # updates in a row are counted from here: what made them bad may be what was changed
        resumed_from = [*state.values.get("resumed_from", []), told]
        return State(state.step, {**state.tensors, "bad": bad}, {**state.values, "resumed_from": resumed_from})

    def _buffers(self) -> dict[str, Tensor]:
        persistent = self.objective.state_dict().keys()
        return {name: buffer for name, buffer in self.objective.named_buffers() if name in persistent}

    def _machine(self) -> dict[str, str | int]:
        device, world = self.accelerator.device.type, self.accelerator.num_processes
        threads, backend = torch.get_num_threads(), attention.active()
        return {"device": device, "processes": world, "threads": threads, "attention": backend}


def _is_of_model(name: str) -> bool:
    return name.startswith(("weights.", "ema.", "buffers."))


def rows_of_pass(number: int, rank: int, num_processes: int, num_rows: int) -> slice:
    """Rows of the global batch that a process takes in one of its accumulation passes, each of `num_rows`."""
    first = (number * num_processes + rank) * num_rows
    return slice(first, first + num_rows)


def rows_per_pass(params: TrainingParams, accelerator: Accelerator) -> int:
    """Rows of a global batch that a process takes at once. MachineError: the processes cannot divide it."""
    num_parts = params.num_accumulation_steps * accelerator.num_processes
    if params.batch_size % num_parts:
        found = f"{accelerator.num_processes} processes with num_accumulation_steps {params.num_accumulation_steps}"
        fix = "start another number of processes, or change num_accumulation_steps or batch_size"
        raise MachineError("training", found, f"a product that divides batch_size {params.batch_size}", fix)
    return params.batch_size // num_parts


def _make_optimizer(weights: list[nn.Parameter], params: TrainingParams) -> _AdamW:
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": params.weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return _AdamW([group for group in groups if group["params"]], betas=params.betas, fused=True)


def train(
    objective: nn.Module,
    batch_at_step: BatchAtStep,
    keys_at_step: KeysAtStep,
    params: TrainingParams,
    accelerator: Accelerator,
    run: Run,
    *,
    validate: Validate,
    picture: Picture | None = None,
    name: str,
) -> History:
    """Train `objective` for `params.num_steps` updates, going on from the newest state of `run`.

    objective: maps a batch to scalars, "loss" among them, each a mean over the rows it was given.
    batch_at_step: (step, rows) -> those rows of the global batch of that step, on the CPU; a pure function.
    keys_at_step: step -> keys of the samples of that batch, to be named when its update is skipped.
    validate: called on every process with the averaged weights in the objective; its numbers become a row.
    picture: called on the main process with the averaged weights and a path to write a PNG to.

    On return the objective holds the averaged weights, in evaluation mode. Equal params give equal bits at equal
    threads and processes, however often the run was stopped; other numbers of processes or passes agree up to rounding.

    Raises:
        Stopped: the process was asked to stop; the state after the current step is saved.
        NumericsError: too many updates in a row were not finite.
        IntegrityError: the processes differ in params, inputs, code, packages, weights, samples or the state they read.
        MachineError: another process ended, the directory is in use, cannot be written, or the global batch cannot be
            divided over the processes.
    """
    with ExitStack() as on_error, ranks.together():
        on_error.callback(run.close)
        ranks.agree(run.fingerprint)
        if ranks.count() > 1:  # before all take the weights of the first one
            ranks.agree(
                ranks.checksums(objective.state_dict()), "start all from equal packages on machines of one kind"
            )
        loop = _Loop(objective, batch_at_step, keys_at_step, params, accelerator)
        if accelerator.is_main_process:
            run.open()
            run.adopt(loop.take)
        _restore(loop, run, name)
        coming = range(loop.step, loop.step + _NUM_COMPARED_BATCHES)
        ranks.agree({f"the batch of step {step + 1}": keys_at_step(step) for step in coming})
        _run_steps(loop, run, validate, picture, name)
        on_error.pop_all()  # the run is the caller's until the result is in its place
    loop.swap()
    objective.eval()
    return loop.history


def _restore(loop: _Loop, run: Run, name: str) -> None:
    """Go on from the newest good state of the run, if it has one."""
    if (found := run.load(loop.accelerator)) is not None:
        loop.restore(found)
        loop.accelerator.print(f"{name}: going on from step {loop.step} in {run.directory}", flush=True)
    _compare(loop)


def _compare(loop: _Loop) -> None:
    """IntegrityError on every process unless weights, averages, optimizer and counts are equal on all."""
    if ranks.count() > 1:
        fix = (
            "run this again: it goes on from the last saved state; use machines of one kind with equal machine.threads"
        )
        ranks.agree(ranks.checksums(loop.state().tensors), fix)


def _run_steps(loop: _Loop, run: Run, validate: Validate, picture: Picture | None, name: str) -> None:
    params, is_main = loop.params, loop.accelerator.is_main_process
    with StopRequest() as stop, Progress(name, "step", params.num_steps, done=loop.step, is_shown=is_main) as progress:
        while loop.step < params.num_steps:
            loop.update()
            is_last = loop.step == params.num_steps
            is_stopping = loop.agree(stop.reason is not None)
            if is_last or loop.step % params.log_every_steps == 0:
                progress.note(loss=loop.log()["loss"])
            progress.advance()
            if is_last or loop.step % params.validate_every_steps == 0:
                _validate(loop, validate, picture, run)
            if is_last or is_stopping or loop.step % params.save_every_steps == 0:
                _save(loop, run)
            if is_stopping and not is_last:
                found = f"{stop.reason or 'another process was asked to stop'} at step {loop.step}"
                raise Stopped(name, found, f"{params.num_steps} steps", "run it again: it goes on from there")


def _validate(loop: _Loop, validate: Validate, picture: Picture | None, run: Run) -> None:
    """A row of the validation curve and a look at it in the run directory."""
    with loop.averaged():
        loop.history.validation.append({"step": loop.step, **validate(loop.objective)})
        if loop.accelerator.is_main_process:
            if picture is not None:
                picture(loop.objective, run.directory / f"picture-{loop.step:09d}.png")
            loop.history.write_tables(run.directory)
    ranks.wait()


def _save(loop: _Loop, run: Run) -> None:
    _compare(loop)
    if loop.accelerator.is_main_process:
        run.commit(loop.state(), loop.params.num_kept_states)
    ranks.wait()
