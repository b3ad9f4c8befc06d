"""The one training loop: accumulation, clipping, averaged weights, validation, exact resume, orderly stop.

There is no random state and no position in the data: a batch is a pure function of the step, so a saved run is its
tensors and one integer. Nothing waits for the device between two rows of the log.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, fields, replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.compute import attention, devices, ranks
from ldm.compute.precision import autocast
from ldm.compute.saved import State
from ldm.compute.state import Run
from ldm.compute.stopping import StopRequest
from ldm.core import images
from ldm.core.errors import NumericsError, Stopped
from ldm.core.params import AskedPrecision
from ldm.core.progress import Progress
from ldm.training import batches, plots, resuming, sharding
from ldm.training.averages import Averages
from ldm.training.batches import Batch, BatchAtStep
from ldm.training.history import BadUpdates, History, Row
from ldm.training.live import Live
from ldm.training.optimizer import ADVERSARY, Optimizers, learning_rate_at
from ldm.training.pace import Pace
from ldm.training.params import AdversaryParams, AveragesParams, TrainingParams

KeysAtStep = Callable[[int], list[str]]
Validate = Callable[[nn.Module], dict[str, float]]
Picture = Callable[[nn.Module], images.Image.Image]

_NUM_STEPS_BETWEEN_STOP_CHECKS = 16
_NUM_COMPARED_BATCHES = 3


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
    adversary: AdversaryParams | None = None,
    averages: AveragesParams | None = None,
    name: str,
) -> History:
    """Train `objective` for `params.num_steps` updates, from the newest state of `run` on.

    objective: maps a batch to scalars, "loss" among them, each a mean over the rows of the batch.
    batch_at_step: (step, rows) -> those rows of the global batch of that step, on the CPU; a pure function, which a
        thread may call.
    keys_at_step: step -> keys of the samples of that batch, which are logged if its update is skipped.
    validate: called on every process with the averaged weights in the objective; its numbers become a row of the curve.
    picture: called with the averaged weights; the main process saves what it draws. The others call it too if a network
        is split over them, and then computes only when all of them do.
    adversary: how the submodule `adversary` of the objective is trained, by the gradients that the same loss gives it.
        Its weights are not averaged.
    averages: which averages the run keeps besides, and whether one made of them is the result.

    On return the objective holds the averaged weights, in evaluation mode. Equal params give equal bits at equal
    threads and processes, however often the run was stopped. Other numbers of processes or passes, and networks that
    are split over processes (`ldm.training.sharding`), agree up to rounding, if the gradient of the loss is the mean of
    those of its rows, as it is of all objectives but one with an adversary.

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
        # Before accelerate copies the weights of the first process to the others, which would hide a difference.
        if ranks.count() > 1:
            fix = "start all from equal packages on machines of one kind"
            ranks.agree(ranks.checksums(objective.state_dict()), fix)
        batches.rows_per_pass(params, accelerator)
        pace = Pace(params.batch_size)
        training = _Training(objective, keys_at_step, params, adversary, accelerator, averages)
        if accelerator.is_main_process:
            run.open()
            run.adopt(partial(resuming.accepted, training.state(), params))
        _restore(training, run, name)
        # Equal code and data should give equal batches; keys are cheap, so a few are compared before any is computed.
        compared = range(training.step, training.step + _NUM_COMPARED_BATCHES)
        ranks.agree({f"the batch of step {step + 1}": keys_at_step(step) for step in compared})
        remaining = range(training.step, params.num_steps)
        with (
            closing(batches.coming(batch_at_step, remaining, params, accelerator, run.machine)) as coming,
            Live(run, params, training.history, pace, step=training.step, is_shown=accelerator.is_main_process) as live,
        ):
            ranks.wait()  # a tracker may take long to start
            if not remaining:
                _conclude(training, run, validate, picture, live)
            _run_steps(training, pace.timed(coming), run, validate, picture, name, live)
            if training.averages.choose(run):
                _compare(training)
                training.history.validation.pop()
                _validate(training, validate, picture, run, live)
        training.averages.swap()
        sharding.join(training.objective, objective, accelerator.device)
        on_error.pop_all()  # the run stays open until the caller has its result in place
    objective.eval()
    return replace(training.history, precision=training.precision)


def _run_steps(
    training: "_Training",
    coming: Iterator[Batch],
    run: Run,
    validate: Validate,
    picture: Picture | None,
    name: str,
    live: Live,
) -> None:
    """Update until the last step: log, validate and save when it is time to, and stop in good order if asked."""
    params, is_main = training.params, training.accelerator.is_main_process
    live.pace.restart()
    with (
        StopRequest() as stop,
        Progress(name, "step", params.num_steps, done=training.step, is_shown=is_main) as progress,
    ):
        while training.step < params.num_steps:
            training.update(coming)
            is_last = training.step == params.num_steps
            is_stopping = training.agree(stop.reason is not None)
            # The order counts: a saved state holds the rows of its own step, and the run its averages.
            training.averages.save(run, training.step, is_main=is_main)
            if is_last or training.step % params.log_every_steps == 0:
                progress.note(loss=training.log()["loss"])
                live.show(training.history)
                ranks.wait()  # a tracker may take long to answer
            progress.advance()
            with live.pace.stopped():
                if is_last or training.step % params.validate_every_steps == 0:
                    _validate(training, validate, picture, run, live)
                if is_last or is_stopping or training.step % params.save_every_steps == 0:
                    _save(training, run, is_needed=is_last or is_stopping)
            if is_stopping and not is_last:
                found = f"{stop.reason or 'another process was asked to stop'} at step {training.step}"
                raise Stopped(name, found, f"{params.num_steps} steps", "run it again: it goes on from there")


def _conclude(training: "_Training", run: Run, validate: Validate, picture: Picture | None, live: Live) -> None:
    """What follows the last update, as far as a state of that step lacks it: one that `ldm resume` named was saved
    before its step was the last. It stays as it is: a run that is stopped now does this again."""
    training.averages.save(run, training.step, is_main=training.accelerator.is_main_process)
    if training.sums:
        training.log()
    if not training.is_validated:
        _validate(training, validate, picture, run, live)


def _validate(training: "_Training", validate: Validate, picture: Picture | None, run: Run, live: Live) -> None:
    """Add a row to the validation curve, write a picture to the run directory, and show both."""
    with training.averaged():
        training.history.validation.append({"step": training.step, **validate(training.objective)})
        is_main = training.accelerator.is_main_process
        drawn = picture(training.objective) if picture and (is_main or training.is_split) else None
        if is_main:
            if drawn is not None:
                plots.write_picture(run.directory / f"picture-{training.step:09d}.png", drawn)
            live.show(training.history)
    ranks.wait()


def _save(training: "_Training", run: Run, is_needed: bool) -> None:
    """Save the state. is_needed: return when it is on the disk, not while a thread writes it."""
    _compare(training)
    asked = run.machine.background_saves if run.machine else None
    in_background = training.accelerator.device.type == "cuda" if asked is None else asked
    is_main, state = training.accelerator.is_main_process, training.state()
    state = replace(state, tensors=sharding.gathered(state.tensors, is_kept=is_main))
    if is_main:
        run.commit(state, training.params.num_kept_states, in_background=in_background)
        if is_needed:
            run.settle()
    ranks.wait()


def _restore(training: "_Training", run: Run, name: str) -> None:
    """Resume from the newest good state of the run, if it has one, in its precision if the params leave it open."""
    state = run.load(training.accelerator)
    before = state and state.values.get("precision")  # a state of former commits says nothing of it
    training.precision = devices.settle(training.params.precision, training.objective, training.accelerator, before)
    if state is not None:
        training.restore(state)
        training.accelerator.print(f"{name}: going on from step {training.step} in {run.directory}", flush=True)
    _compare(training)


def _compare(training: "_Training") -> None:
    """IntegrityError on every process unless weights, averages, optimizer and counts are equal on all, but for those of
    which each holds a part of its own."""
    if ranks.count() > 1:
        fix = (
            "run this again: it goes on from the last saved state; use machines of one kind with equal machine.threads"
        )
        own = {name: t for name, t in training.state().tensors.items() if not sharding.is_part(t)}
        ranks.agree(ranks.checksums(own), fix)


class _Training:
    """One training: weights, optimizer, averages, counts and curves. `step` counts the updates that are done."""

    def __init__(
        self,
        objective: nn.Module,
        keys_at_step: KeysAtStep,
        params: TrainingParams,
        adversary: AdversaryParams | None,
        accelerator: Accelerator,
        averages: AveragesParams | None,
    ) -> None:
        assert accelerator.gradient_accumulation_steps == params.num_accumulation_steps, "started for these params"
        self.objective, self.keys_at_step = sharding.split(objective.train(), accelerator.device), keys_at_step
        self.is_split = self.objective is not objective
        if self.is_split:
            sharding.refuse_muon(params)
        self.params, self.accelerator = params, accelerator
        self.precision: AskedPrecision = params.precision
        # A split network averages its gradients by itself.
        self.model: nn.Module = accelerator.prepare_model(self.objective, evaluation_mode=self.is_split)
        self.weights = {name: weight for name, weight in self.objective.named_parameters() if weight.requires_grad}
        averaged = {name: weight for name, weight in self.weights.items() if not name.startswith(ADVERSARY)}
        self.averages = Averages(averaged, params, averages)
        self.optimizers = Optimizers(self.weights, params, adversary)
        self.bad = BadUpdates(*torch.zeros(4, dtype=torch.int64, device=accelerator.device))
        self.sums: dict[str, Tensor] = {}
        self.step = 0
        self.history = History([], [], [], [])
        self._open_row()

    def update(self, coming: Iterator[Batch]) -> None:
        """One optimizer update from one global batch, or none at all if its loss or gradient is not finite."""
        scalars = self._gradients(coming)
        is_good, norms = self.optimizers.update(self.step, self.accelerator, self.precision)
        self.averages.update(self.step)
        self.step += 1
        self._count(is_good, {**scalars, **norms})

    def _gradients(self, coming: Iterator[Batch]) -> dict[str, Tensor]:
        """Compute gradients of the mean loss over the global batch; return this process's means of the scalars."""
        num_passes = self.params.num_accumulation_steps
        sums: dict[str, Tensor] = {}
        for _ in range(num_passes):
            built = next(coming)
            batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in built.items()}
            with self.accelerator.accumulate(self.model):
                with autocast(self.accelerator.device, self.precision, keeps_casts=not self.is_split):
                    scalars: dict[str, Tensor] = self.model(batch)
                loss = scalars["loss"]
                # A non-finite loss can have finite gradients, and on one process only: make every gradient NaN, so that
                # all processes, which see the same summed gradients, take the same decision without another exchange.
                self.accelerator.backward(loss * torch.where(torch.isfinite(loss), 1.0, torch.nan).detach())
            for name, value in scalars.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / num_passes
        return sums

    def _count(self, is_good: Tensor, scalars: Mapping[str, Tensor]) -> None:
        in_row = torch.where(is_good, 0, self.bad.in_row + 1)
        self.bad = BadUpdates(
            total=self.bad.total + ~is_good,
            in_row=in_row,
            most_in_row=torch.maximum(self.bad.most_in_row, in_row),
            last_step=torch.where(is_good, self.bad.last_step, self.step),
        )
        self.is_bad[self.step - 1 - self._row_start] = ~is_good
        for name, value in {**scalars, "num_good": torch.ones_like(scalars["loss"])}.items():
            self.sums[name] = self.sums.get(name, 0) + torch.where(is_good, value, 0)

    def _open_row(self) -> None:
        """Start a row of the curve: no sums yet, and no bad update."""
        self.sums = {}
        self.is_bad = torch.zeros(self.params.log_every_steps, dtype=torch.bool, device=self.accelerator.device)

    @property
    def is_validated(self) -> bool:
        """Whether the newest row of the validation curve is of this step."""
        return bool(self.history.validation) and self.history.validation[-1]["step"] == self.step

    @property
    def _row_start(self) -> int:
        """Updates before the first one of the row that is open."""
        return int(self.history.training[-1]["step"]) if self.history.training else 0

    def agree(self, is_asked: bool) -> bool:
        """Whether any process was asked to stop. The same exchange averages the scalars of all processes."""
        if self.accelerator.num_processes == 1:
            return is_asked
        asked = torch.full((), float(is_asked), device=self.accelerator.device)
        vector = torch.stack([asked, *self.sums.values()])
        vector = torch.as_tensor(self.accelerator.reduce(vector, "mean"))
        self.sums = dict(zip(self.sums, vector[1:].unbind(), strict=True))
        # Reading the answer waits for the device, so a GPU reads it now and then.
        is_cheap = self.accelerator.device.type == "cpu" or self.step % _NUM_STEPS_BETWEEN_STOP_CHECKS == 0
        return is_cheap and vector[0].item() > 0

    def log(self) -> Row:
        """Close a row of the curve.

        NumericsError: too many updates in a row had a non-finite loss or gradient.
        """
        names = [name for name in self.sums if name != "num_good"]
        values: list[float] = torch.stack([self.sums[name] for name in names]).div(self.sums["num_good"]).tolist()
        learning_rate = learning_rate_at(self.step - 1, self.params)
        row: Row = {"step": self.step, **dict(zip(names, values, strict=True)), "learning_rate": learning_rate}
        self._log_skipped()
        self.history.training.append({**row, "num_skipped": int(self.bad.total)})
        self._open_row()
        if self.bad.most_in_row >= self.params.max_nonfinite_steps:
            most, last = int(self.bad.most_in_row), int(self.bad.last_step)
            found = f"{most} updates in a row up to step {last} had a non-finite loss or gradient"
            expected = f"fewer than max_nonfinite_steps {self.params.max_nonfinite_steps}"
            fix = "lower learning_rate or set precision: fp32, then `ldm resume STATE` with one that `ldm runs` lists"
            raise NumericsError("training", found, expected, fix)
        return row

    def _log_skipped(self) -> None:
        for offset in torch.nonzero(self.is_bad).flatten().tolist():
            step = self._row_start + offset
            self.accelerator.print(self.history.skip(step + 1, self.keys_at_step(step)), flush=True)

    @contextmanager
    def averaged(self) -> Generator[None]:
        """A block in which the objective has the averaged weights, in evaluation mode, without gradients."""
        self.averages.swap()
        self.objective.eval()
        with torch.no_grad(), autocast(self.accelerator.device, self.precision, keeps_casts=not self.is_split):
            yield
        self.objective.train()
        self.averages.swap()

    def state(self) -> State:
        """Everything the next update depends on, and the history."""
        tensors = {f"{kind}.{name}": t.detach() for kind, own in self._model().items() for name, t in own.items()}
        for name, weight in self.weights.items():
            tensors |= {f"optimizer.{key}.{name}": value for key, value in self.optimizers.moments(weight).items()}
        tensors |= {f"sums.{name}": value for name, value in self.sums.items()} | {"bad": torch.stack(self.bad)}
        tensors["is_bad"] = self.is_bad
        values = {**asdict(self.history), "precision": self.precision, "sums": list(self.sums)}
        return State(self.step, tensors, {**values, "machine": self._machine()})

    def restore(self, state: State) -> None:
        """Continue from a saved state."""
        targets = self._model()
        for name, tensor in state.tensors.items():
            kind, _, key = name.partition(".")
            if kind in targets:
                target = targets[kind][key].detach()
                target.copy_(sharding.like(target, tensor))
            elif kind == "optimizer":
                part, _, weight_name = key.partition(".")
                weight = self.weights[weight_name]
                if self.optimizers.keeps(weight, part):
                    self.optimizers.moments(weight)[part] = sharding.like(weight, tensor)
        device = self.accelerator.device
        self.history = History(**{f.name: state.values[f.name] for f in fields(History) if f.name in state.values})
        self.step = state.step
        self._open_row()
        self.sums = {name: state.tensors[f"sums.{name}"].to(device) for name in state.values["sums"]}
        self.bad = BadUpdates(*state.tensors["bad"].to(device))
        # The open row ends at the next multiple of log_every_steps; it may be longer, if the params changed.
        done = state.tensors["is_bad"][: self.step - self._row_start].to(device)
        self.is_bad = torch.cat([done, self.is_bad])
        if state.values["machine"] != self._machine():
            saved = f"saved with {state.values['machine']}, going on with {self._machine()}"
            self.accelerator.print(f"{saved}: equal up to rounding, not in every bit", flush=True)

    def _model(self) -> dict[str, Mapping[str, Tensor]]:
        """Weights, averages and buffers by their names in a state."""
        persistent = self.objective.state_dict().keys()
        buffers = {name: buffer for name, buffer in self.objective.named_buffers() if name in persistent}
        return {"weights": self.weights, **self.averages.targets, "buffers": buffers}

    def _machine(self) -> dict[str, str | int]:
        device, world = self.accelerator.device.type, self.accelerator.num_processes
        threads, backend = torch.get_num_threads(), attention.selected()
        split = {"split": 1} if self.is_split else {}
        return {"device": device, "processes": world, "threads": threads, "attention": backend, **split}
