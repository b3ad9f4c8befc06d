"""An orderly stop: a long computation that is asked to end does so once its state is saved."""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from select import POLLIN, poll
from types import FrameType
from typing import Any, Self, TextIO, cast

import psutil

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LAUNCHERS = {"dvc", "accelerate", "accelerate-launch", "accelerate.commands.launch", "ldm.tools.launch", "torchrun"}


class StopRequest:
    """Whether this process was asked to stop: by SIGTERM, SIGINT, SIGHUP (a closed terminal), or the death of an
    ancestor up to `dvc`.

    A context manager. A signal that was ignored before (`nohup`) stays ignored. A second SIGINT has its usual effect.
    Killing `dvc` or a launcher leaves their children running, so every ancestor up to the topmost of them is watched
    through a pidfd (where the system has them). Inside the block, output to a terminal that is gone is dropped: saving
    the state matters more.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._done = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._streams = ExitStack()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._on_signal)
        watched = _watched_ancestors()
        if watched:
            threading.Thread(target=self._watch, args=(watched,), daemon=True).start()
        for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
            if stream is not None:  # pyright: ignore[reportUnnecessaryComparison]  # a process may have none
                self._streams.enter_context(redirect(cast(TextIO, _Lasting(stream))))
        return self

    def __exit__(self, *_: object) -> None:
        self._streams.close()
        self._done.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = f"{signal.Signals(number).name} received"
        if signal.SIGINT in self._handlers:
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


class _Lasting:
    """A stream whose reader may go away: writing to a closed terminal fails with EIO, to a closed pipe with EPIPE."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _watched_ancestors() -> dict[int, str]:
    """pidfd -> name of every ancestor up to the topmost launcher; empty if no launcher started this process."""
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
