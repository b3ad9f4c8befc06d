"""Resumable state of a long computation, outside DVC's outs: `runs/<stage>/<hash of the fingerprint>/`.

A state becomes visible as a whole or not at all, is hashed when it is written and when it is read, and is only ever
resumed by a run with the same fingerprint. It is safetensors and JSON. One process at a time owns a run directory.
"""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from select import POLLIN, poll
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psutil
import torch
from pydantic import BaseModel
from torch import Tensor
from tqdm import tqdm

from ldm import artifact, locks
from ldm.errors import IntegrityError, MachineError, NumericsError, Stopped

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

_TENSORS, _VALUES, _MANIFEST = "tensors.safetensors", "values.json", "manifest.json"
_LAUNCHERS = {"dvc", "accelerate", "accelerate-launch", "accelerate.commands.launch", "torchrun"}
_NUM_SHOWN_CHANGES = 8


@dataclass(frozen=True)
class State:
    """What a run needs to go on after `step` updates."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def fingerprint(section: BaseModel, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What a result depends on, as dotted keys: the resolved section, the hashes of the inputs and of the code, and the
    versions of packages.

    Code is every loaded module of `ldm` and the stage's script. Threads and number of processes are no part of it: they
    change the last bits of a result, not what is computed.
    """
    code = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] in ("ldm", "__main__")}
    return {
        **dict(_flatten("params", section.model_dump(mode="json"))),
        **{f"inputs.{name}": sha256 for name, sha256 in sorted(inputs.items())},
        **{f"code.{name}": artifact.sha256_file(path) for name, path in sorted(code.items()) if path},
        **{f"packages.{name}": metadata.version(name) for name in artifact.PACKAGES},
    }


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _flatten(f"{name}.{key}", entry)
    else:
        yield name, value


class Run:
    """One run directory: `open` it, `load` the newest good state, `commit` new ones, `remove` it in the end.

    Work in units that need no order is kept unit by unit instead: `keep` and `kept`.
    Only the main process opens, commits, retains and removes; every process may load, and keep units of its own.
    """

    def __init__(self, root: Path, stage: str, fingerprint: Mapping[str, Any]) -> None:
        self.fingerprint = dict(fingerprint)
        self.directory = root / stage / artifact.sha256_json(self.fingerprint)[:16]
        self._lock: int | None = None

    def open(self) -> None:
        """Take the run directory, and say what changed if other runs of the stage exist but not this one.

        MachineError: another process holds it.
        """
        if self._lock is not None:
            return
        is_fresh = not self.directory.exists()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = locks.take(self.directory / "lock")
        for left_over in self.directory.glob(".*.building"):
            shutil.rmtree(left_over)
        if is_fresh:
            self._report_changes()
        artifact.write_json(self.directory / "fingerprint.json", self.fingerprint)

    @contextmanager
    def opened(self, accelerator: "Accelerator") -> Generator[None]:
        """Open on the main process while all processes work in it; closed at the end."""
        if accelerator.is_main_process:
            self.open()
        accelerator.wait_for_everyone()
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the run directory."""
        if self._lock is not None:
            locks.release(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Remove the run directory, if this process holds it: its result stands elsewhere now."""
        if self._lock is not None:
            shutil.rmtree(self.directory)
            self.close()

    def load(self) -> State | None:
        """The newest state that verifies, or None. One that does not is reported and passed over."""
        for directory in sorted(self.directory.glob("step-*"), reverse=True):
            try:
                state = _read(directory)
            except IntegrityError as error:
                print(f"{error}\nthe state before it is used", file=sys.stderr, flush=True)
            else:
                # Copies, since mapped tensors would change with their file, and a training updates them in place.
                return State(state.step, {name: t.clone() for name, t in state.tensors.items()}, state.values)
        return None

    def commit(self, state: State, num_kept: int) -> None:
        """Make a state the newest one, durably, then drop all but the `num_kept` newest.

        After a kill at any point, or an error, the states from before still load.

        Raises:
            NumericsError: a tensor is not finite. MachineError: it cannot be written (with needed and free bytes).
        """
        assert self._lock is not None, "a run commits only while it is open"
        self._publish(f"step-{state.step:09d}", state)
        for old in sorted(self.directory.glob("step-*"))[:-num_kept]:
            shutil.rmtree(old)

    def keep(self, key: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None) -> None:
        """Keep one finished unit of work, durably, under a key that says all that it was computed from within this run.

        Raises as `commit` does.
        """
        self._publish(f"unit-{key}", State(0, dict(tensors), dict(values or {})))

    def kept(self, key: str) -> State | None:
        """A unit if it was kept and verifies, its tensors mapped into memory, else None; a bad one is reported."""
        directory = self.directory / f"unit-{key}"
        if not directory.exists():
            return None
        try:
            return _read(directory)
        except IntegrityError as error:
            print(f"{error}\nit is computed again", file=sys.stderr, flush=True)
            return None

    def kept_keys(self) -> list[str]:
        """Keys of all units, sorted."""
        return sorted(path.name.removeprefix("unit-") for path in self.directory.glob("unit-*"))

    def retain(self, keys: Collection[str]) -> None:
        """Drop every unit but these, and the directories of the stage's former runs: what remains is what made the
        newest result, and serves the next one."""
        assert self._lock is not None, "a run drops units only while it is open"
        for key in set(self.kept_keys()) - set(keys):
            shutil.rmtree(self.directory / f"unit-{key}")
        for other in self.directory.parent.iterdir():
            if other != self.directory and other.is_dir():
                with suppress(MachineError):
                    lock = locks.take(other / "lock")
                    shutil.rmtree(other)
                    locks.release(lock)

    def _publish(self, name: str, state: State) -> None:
        """Write a state beside its place, force it to the disk, give it its name, and read it back."""
        _refuse_nonfinite(state, self.directory, name)
        # Named by process: an orphan of a killed launch may still be at the same unit.
        building, final = self.directory / f".{name}.{os.getpid()}.building", self.directory / name
        try:
            _write(building, state)
            if final.exists():  # only a state that did not verify is ever made again
                shutil.rmtree(final)
            building.rename(final)
            _sync(self.directory)
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            raise self._unwritable(state, error) from error
        _check(final)

    def _unwritable(self, state: State, error: Exception) -> MachineError:
        needed = sum(tensor.nbytes for tensor in state.tensors.values())
        found = f"{error}; {shutil.disk_usage(self.directory).free} bytes are free"
        fix = "free space or mend the disk and run again: it goes on from the last state, which is unharmed"
        return MachineError(str(self.directory), found, f"room for a state of {needed} bytes", fix)

    def _report_changes(self) -> None:
        others = [path for path in self.directory.parent.glob("*/fingerprint.json")]
        if not others:
            return
        newest = max(others, key=lambda path: path.stat().st_mtime)
        before: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))
        keys = [key for key in {**before, **self.fingerprint} if before.get(key) != self.fingerprint.get(key)]
        shown = [f"  {key}: {before.get(key)} -> {self.fingerprint.get(key)}" for key in keys[:_NUM_SHOWN_CHANGES]]
        more = [f"  and {len(keys) - len(shown)} more"] if len(keys) > len(shown) else []
        print(f"fresh run; {newest.parent} differs in", *shown, *more, sep="\n", flush=True)


def _refuse_nonfinite(state: State, directory: Path, name: str) -> None:
    for tensor_name, tensor in state.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            fix = "lower the learning rate of the training it comes from; what was saved before is kept"
            raise NumericsError(str(directory), f"{tensor_name} is not finite in {name}", "finite numbers", fix)


def _write(directory: Path, state: State) -> None:
    """Files, their hashes, and the folder itself, each forced to the disk before the next."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    artifact.write_tensors(directory / _TENSORS, state.tensors)
    # Not write_json: a loss may be NaN, and columns keep their order.
    (directory / _VALUES).write_text(json.dumps({"step": state.step, **state.values}), encoding="utf-8")
    names = (_TENSORS, _VALUES)
    for name in names:
        _sync(directory / name)
    artifact.write_json(directory / _MANIFEST, {name: artifact.sha256_file(directory / name) for name in names})
    _sync(directory / _MANIFEST)
    _sync(directory)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _check(directory: Path) -> None:
    """IntegrityError unless the files of a state have the hashes that its manifest says."""
    path = directory / _MANIFEST
    fix = "nothing: it is passed over"
    try:
        manifest: dict[str, str] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IntegrityError(str(path), str(error), "the hashes of a state", fix) from None
    if sorted(manifest) != sorted((_TENSORS, _VALUES)):
        raise IntegrityError(str(path), f"files {sorted(manifest)}", f"{_TENSORS}, {_VALUES}", fix)
    for name, sha256 in manifest.items():
        artifact.check_file(directory / name, sha256)


def _read(directory: Path) -> State:
    _check(directory)
    values: dict[str, Any] = json.loads((directory / _VALUES).read_bytes())
    return State(values.pop("step"), artifact.open_tensors(directory / _TENSORS), values)


class StopRequest:
    """Whether this process was asked to stop: by SIGTERM, SIGINT, or the death of an ancestor up to `dvc`.

    A context manager. A second SIGINT acts as without it. Killing `dvc` or a launcher leaves their children running, so
    every ancestor up to the topmost of them is watched through a pidfd (where the system has them).
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._done = threading.Event()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._on_signal)
        watched = _watched_ancestors()
        if watched:
            threading.Thread(target=self._watch, args=(watched,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = f"{signal.Signals(number).name} received"
        signal.signal(signal.SIGINT, self._handlers[signal.SIGINT])

    def _watch(self, watched: Mapping[int, str]) -> None:
        poller = poll()
        for file in watched:
            poller.register(file, POLLIN)
        while not self._done.is_set():
            for file, _ in poller.poll(500):
                self.reason = f"{watched[file]} died"
                self._done.set()
        for file in watched:
            os.close(file)


def units(work: Sequence[T], name: str, unit: str, accelerator: "Accelerator") -> Iterator[T]:
    """This process's share of independent units of work, under a progress bar.

    Stopped: the process was asked to stop; the unit at hand was finished first.
    """
    mine: Iterable[T] = work[accelerator.process_index :: accelerator.num_processes]
    with StopRequest() as stop:
        for item in tqdm(mine, name, unit=unit, disable=not accelerator.is_main_process):
            yield item
            if stop.reason is not None:
                fix = "run it again: what is done is kept"
                raise Stopped(name, stop.reason, f"{len(work)} units of work", fix)


def _watched_ancestors() -> dict[int, str]:
    """Descriptor -> name of every ancestor up to the topmost launcher; empty if no launcher started this process."""
    if not hasattr(os, "pidfd_open"):
        return {}
    watched: list[tuple[psutil.Process, bool]] = []
    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            names = {Path(argument).name for argument in process.cmdline()[:4]}
            watched.append((process, bool(names & _LAUNCHERS)))
    last = max((i for i, (_, is_launcher) in enumerate(watched) if is_launcher), default=-1)
    files: dict[int, str] = {}
    for process, _ in watched[: last + 1]:
        with suppress(ProcessLookupError, psutil.Error):
            files[os.pidfd_open(process.pid)] = f"{process.name()} ({process.pid})"
    return files
