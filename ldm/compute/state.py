"""Resumable state of a long computation, outside DVC's outs: `runs/<stage>/<hash of the fingerprint>/`.

A run with the same fingerprint resumes from its newest state, and so does one for which the user asked for it (`ldm
resume`). One process at a time owns a run directory.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ldm.compute import fingerprint, ranks, saved
from ldm.compute.saved import State
from ldm.core import artifact, locks, workspace
from ldm.core.errors import IntegrityError, MachineError
from ldm.core.params import MachineParams

if TYPE_CHECKING:
    from accelerate import Accelerator

REQUEST = "resume.json"
"""File in a stage's folder of runs: the state that its next run resumes from."""
FINGERPRINT = "fingerprint.json"

_LOCK = "lock"
_SECONDS_PER_DAY = 86400


class Run:
    """One run directory: `open` it, `choose` the newest good state, `commit` new ones, `remove` it in the end.

    Work in independent units is kept unit by unit instead, as are averages of a training: `keep` and `kept`.
    Only the main process opens, chooses, commits, retains and removes; every process may keep units.
    """

    def __init__(
        self, root: Path, stage: str, made_by: Mapping[str, Any], machine: MachineParams | None = None
    ) -> None:
        """made_by: its `fingerprint`. machine: which former and finished runs are kept; None = all former ones and no
        finished one."""
        self.fingerprint = dict(made_by)
        self.directory = root / stage / artifact.sha256_json(fingerprint.identity(made_by))[:16]
        self.machine = machine
        self._lock: int | None = None
        self._writing: Future[None] | None = None

    def open(self) -> None:
        """Lock the run directory. If it is new and the stage has other runs, print what differs from the newest one.
        Former runs that the params do not keep are removed.

        MachineError: another process holds it.
        """
        if self._lock is not None:
            return
        is_fresh = not self.directory.exists()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = locks.take(self.directory / _LOCK)
        for left_over in self.directory.glob(".*.building"):
            shutil.rmtree(left_over)
        if is_fresh:
            self._report_changes()
        replace_json(self.directory / FINGERPRINT, self.fingerprint)
        removed = prune(self.directory.parent, self.machine, self.directory) if self.machine else []
        if removed:
            print(f"old runs removed, as section machine asks: {', '.join(removed)}", flush=True)

    @contextmanager
    def opened(self, accelerator: "Accelerator") -> Generator[None]:
        """A block in which all processes work in the run directory, which the main process opens and closes.

        IntegrityError: the processes differ in params, inputs, code or packages. MachineError: as `open`.
        """
        ranks.agree(self.fingerprint)
        if accelerator.is_main_process:
            self.open()
        ranks.wait()
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Unlock the run directory, when what is being written is. Call `settle` before to learn of its errors."""
        if self._writing is not None:
            self._writing.exception()
        if self._lock is not None:
            locks.release(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Remove the run directory, if this process holds it: its result is in its place now. The last state of a
        training stays if the params ask for it."""
        if self._lock is None:
            return
        states = states_of(self.directory)
        if states and self.machine is not None and self.machine.keep_finished_states:
            for old in states[:-1]:
                shutil.rmtree(old)
        else:
            lock, self._lock = self._lock, None
            with suppress(OSError):  # the result is in its place; a run that stays is removed later, as old ones are
                locks.remove_folder(self.directory, lock)
        self.close()

    def choose(self) -> saved.Saved | None:
        """The newest state that verifies, or None. A damaged one is reported and skipped."""
        directories = states_of(self.directory)
        for i, directory in reversed(list(enumerate(directories))):
            try:
                return saved.check(directory)
            except IntegrityError as error:
                then = "the state before it is tried" if i else "no good state is left: the run starts at step 0"
                print(f"{error}\n{then}", file=sys.stderr, flush=True)
        return None

    def load(self, accelerator: "Accelerator") -> State | None:
        """The state that the main process chooses, read and verified by every process; None if there is none.

        IntegrityError, on every process: one of them cannot read it.
        """
        chosen = self.choose() if accelerator.is_main_process else None
        choice: list[str] | None = ranks.from_main(chosen and [chosen.directory.name, chosen.manifest_sha256])
        if choice is None:
            return None
        name, sha256 = choice
        state = problem = None
        try:
            state = saved.read(saved.Saved(self.directory / name, sha256))
        except IntegrityError as error:
            problem = f"not read: {str(error).splitlines()[0]}"
        fix = "give all processes the same folder of runs, on a file system that serves them all, and run this again"
        ranks.refuse_any(f"{name} with manifest {sha256[:12]}", problem, "read and verified", fix)
        return state

    def adopt(self, accept: Callable[[State, dict[str, Any]], State]) -> None:
        """Make the state that `ldm resume` asked for, if any, the newest one of this run.

        accept: (the state, a record of its step, its hash and what differs now) -> the state to resume from. It raises
            a `UserError` if the state does not fit.

        Raises:
            IntegrityError: the state, or the request for it, is gone or damaged. MachineError: a process works in its
                run.
        """
        request, asked = self.directory.parent / REQUEST, asked_for(self.directory.parent)
        if asked is None:
            return
        source = self.directory.parent / asked["state"]
        if not source.is_dir():
            fix = f"`ldm resume` another one of `ldm runs`, or rm {request} to start afresh"
            raise IntegrityError(str(source), "gone", f"the state that {request} asks for", fix)
        with suppress(FileNotFoundError) if source.parent == self.directory else locks.held(source.parent / _LOCK):
            found = saved.check(source, asked["manifest_sha256"])
            differs = fingerprint.differences(fingerprint_of(source.parent), self.fingerprint)
            state = saved.read(found)
            record = {"step": state.step, "manifest_sha256": found.manifest_sha256, "differs": differs}
            accepted = accept(state, record)
            # A state of this run is in its place already, and must not be missing even for a moment.
            if source.parent != self.directory:
                for unit in source.parent.glob("unit-*"):
                    shutil.copytree(unit, self.directory / unit.name, dirs_exist_ok=True)
                self._publish(source.name, accepted)
        for newer in (path for path in states_of(self.directory) if path.name > source.name):
            shutil.rmtree(newer)
        request.unlink()
        lines = "".join(f"\n  {line}" for line in fingerprint.in_words(differs)) or " nothing"
        print(f"going on from {source}, as `ldm resume` asked; what differs:{lines}", flush=True)

    def commit(self, state: State, num_kept: int, *, in_background: bool = False) -> None:
        """Make a state the newest one, durably, then drop all but the `num_kept` newest. In the background, a thread
        does so from a copy, once the state before is written; if that could not be, this one is not left to a thread.

        After a kill at any point, or an error, the states from before still load.

        Raises:
            NumericsError: a tensor is not finite. MachineError: it cannot be written (with needed and free bytes).
        """
        assert self._lock is not None, "a run commits only while it is open"
        try:
            self.settle()
        except MachineError as error:
            print(f"{error}\nthe state of step {state.step} is written instead", file=sys.stderr, flush=True)
            in_background = False
        name = f"step-{state.step:09d}"
        saved.refuse_nonfinite(state, self.directory, name)

        def write(state: State) -> None:
            self._publish(name, state)
            states = states_of(self.directory)
            end = states.index(self.directory / name) + 1
            # Those of higher steps are damaged, or their steps would not be taken again.
            for old in states[: max(0, end - num_kept)] + states[end:]:
                shutil.rmtree(old)

        if not in_background:
            return write(state)
        writer = ThreadPoolExecutor(1, "state")
        self._writing = writer.submit(write, saved.snapshot(state))
        writer.shutdown(wait=False)

    def settle(self) -> None:
        """Wait until the state that a thread writes is on the disk. Raises as `commit` does."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def keep(self, key: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None) -> None:
        """Keep one finished unit of work, durably, under a key that says what it was computed from within this run.
        Raises as `commit` does."""
        saved.refuse_nonfinite(State(0, dict(tensors), {}), self.directory, f"unit-{key}")
        self._publish(f"unit-{key}", State(0, dict(tensors), dict(values or {})))

    def kept(self, key: str) -> State | None:
        """The kept unit, memory-mapped; None if it is missing or fails its hash (reported on stderr)."""
        directory = self.directory / f"unit-{key}"
        if not directory.exists():
            return None
        try:
            saved.check(directory)
            return saved.mapped(directory)
        except IntegrityError as error:
            print(f"{error}\nit is computed again, or done without", file=sys.stderr, flush=True)
            return None

    def unit(self, key: str) -> State:
        """A unit that was kept. IntegrityError: it is gone or does not verify."""
        if (unit := self.kept(key)) is None:
            where, fix = f"{self.directory}: {key}", "run it again: only what is missing is computed"
            raise IntegrityError(where, "gone or damaged since it was written", "a unit of work that was kept", fix)
        return unit

    def note(self, name: str, value: Any) -> None:
        """Note a JSON value, durably: what the whole run has in common and must not decide again."""
        replace_json(self.directory / f"{name}.json", value)

    def noted(self, name: str) -> Any:
        """The value that was noted; None if there is none. IntegrityError: it is damaged."""
        path = self.directory / f"{name}.json"
        return _read(path, f"start afresh: rm -r {self.directory}") if path.exists() else None

    def kept_keys(self) -> list[str]:
        """Keys of all units, sorted."""
        return sorted(path.name.removeprefix("unit-") for path in self.directory.glob("unit-*"))

    def file(self, key: str) -> tuple[Path, str]:
        """The safetensors of a kept unit, and their SHA-256 as it was when they were kept and verified."""
        directory = self.directory / f"unit-{key}"
        return directory / saved.TENSORS, saved.hashes(directory)[saved.TENSORS]

    def retain(self, keys: Collection[str]) -> None:
        """Drop all units but these, and the directories of the stage's former runs. What made the newest result
        remains, for the next one to use."""
        assert self._lock is not None, "a run drops units only while it is open"
        for key in set(self.kept_keys()) - set(keys):
            shutil.rmtree(self.directory / f"unit-{key}")
        for other in self.directory.parent.iterdir():
            if other != self.directory and other.is_dir():
                with suppress(MachineError, OSError):
                    locks.remove_folder(other, locks.take(other / _LOCK))

    def _publish(self, name: str, state: State) -> None:
        """Write a state beside its place, hash it there, force it to the disk, and give it its name."""
        # Named by process: an orphan of a killed launch may still be writing the same unit.
        building, final = self.directory / f".{name}.{os.getpid()}.building", self.directory / name
        try:
            saved.write(building, state)
            if final.exists():  # only a damaged state is ever written again
                shutil.rmtree(final)
            building.rename(final)
            saved.sync(self.directory)
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            raise self._unwritable(state, error) from error

    def _unwritable(self, state: State, error: Exception) -> MachineError:
        needed = sum(tensor.nbytes for tensor in state.tensors.values())
        found = f"{error}; {shutil.disk_usage(self.directory).free} bytes are free"
        fix = "free space or repair the disk and run again: it goes on from the last state, which is unharmed"
        return MachineError(str(self.directory), found, f"room for a state of {needed} bytes", fix)

    def _report_changes(self) -> None:
        found = _newest(self.directory.parent)
        if found is None or (self.directory.parent / REQUEST).exists():
            return
        newest, before = found
        shown = [f"  {line}" for line in fingerprint.in_words(fingerprint.differences(before, self.fingerprint))]
        print(f"fresh run; {newest} differs in", *shown, sep="\n", flush=True)
        if states := states_of(newest):
            name = f"{newest.parent.name}/{newest.name}"
            hint = f"to go on from its {states[-1].name} all the same, stop this, `ldm resume {name}`, and run it again"
            print(hint, flush=True)


def states_of(run: Path) -> list[Path]:
    """Folders of the states in a run directory, the newest last. What a user copied to another name is none."""
    return sorted(run.glob(workspace.STATES))


def parts_of(run: Path) -> list[Path]:
    """Folders of all states and units in a run directory."""
    return [*states_of(run), *sorted(run.glob("unit-*"))]


def _newest(stage: Path) -> tuple[Path, dict[str, Any]] | None:
    """The run of a stage that was opened last, and its fingerprint. One that ends just now is passed over, and so is
    a damaged one, which `ldm runs` tells of."""
    for path in sorted(stage.glob(f"[!.]*/{FINGERPRINT}"), key=_changed, reverse=True):
        with suppress(FileNotFoundError, IntegrityError):
            return path.parent, fingerprint_of(path.parent)
    return None


def fingerprint_of(run: Path) -> dict[str, Any]:
    """The fingerprint of a run directory. FileNotFoundError: the run ends just now. IntegrityError: it is damaged."""
    fix = f"under the params and code of then it is written again by the next run; else rm -r {run}"
    return _object(run / FINGERPRINT, (), fix)


def asked_for(stage: Path) -> dict[str, str] | None:
    """What `ldm resume` asked for in a stage's folder of runs: `state` and `manifest_sha256`; None if it did not.
    IntegrityError: the request is damaged."""
    path = stage / REQUEST
    fix = f"rm {path}; then `ldm resume STATE` again, or run without it"
    return _object(path, ("state", "manifest_sha256"), fix) if path.exists() else None


def _object(path: Path, keys: Collection[str], fix: str) -> dict[str, Any]:
    """A JSON object that has texts under these keys."""
    value = _read(path, fix)
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in keys):
        raise IntegrityError(str(path), "JSON that is something else", "what was written there", fix)
    return value


def _read(path: Path, fix: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise IntegrityError(str(path), f"no JSON ({error})", "what was written there", fix) from None


def last_used(run: Path) -> float:
    """When a run was last opened, or a state of it saved: seconds since the epoch. Another process may remove it, or
    states of it, meanwhile."""
    return max(map(_changed, (run, *run.glob(FINGERPRINT), *parts_of(run))))


def _changed(path: Path) -> float:
    """When it was last changed; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def prune(stage: Path, machine: MachineParams, spare: Path | None = None) -> list[str]:
    """Remove the runs of a stage's folder that the params do not keep: beyond their number, too old, or without any
    state; never one that a process holds, that `ldm resume` asked for, or `spare`. Returns a description of each.

    IntegrityError: what was asked for cannot be read. Nothing is removed then.
    """
    asked = asked_for(stage)
    spared = (spare, asked and (stage / asked["state"]).parent)
    runs = sorted((path for path in stage.iterdir() if path.is_dir() and path not in spared), key=last_used)[::-1]
    whole = [run for run in runs if not run.name.startswith(locks.GONE)]
    filled = [run for run in whole if parts_of(run) or any(run.glob("step-*"))]  # a user's copy of a state counts
    kept = filled if machine.num_kept_runs is None else filled[: machine.num_kept_runs]
    removed: list[str] = []
    for run in runs:
        days = (time.time() - last_used(run)) / _SECONDS_PER_DAY
        if run in kept and (machine.max_run_age_days is None or days <= machine.max_run_age_days):
            continue
        # What cannot be removed now must not end a training.
        with suppress(MachineError, OSError):
            description = f"{stage.name}/{run.name} ({size_of(run) / 1e6:.1f} MB, {days:.0f} days old)"
            is_gone = locks.remove_folder(run, locks.take(run / _LOCK))
            removed += [description] if is_gone and run in filled else []
    return removed


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def replace_json(path: Path, value: object) -> None:
    """Write a JSON file as a whole or not at all, durably."""
    new = path.with_name(f".{path.name}.new")
    artifact.write_json(new, value)
    saved.sync(new)
    new.replace(path)
