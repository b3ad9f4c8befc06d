"""An orderly stop: every signal, the death of an ancestor, and terminals that are gone."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.compute.stopping import StopRequest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noted_and_handlers_come_back(number: signal.Signals):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == f"{number.name} received"
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


CHILD = """
import sys, time
from ldm.compute.stopping import StopRequest
end = time.monotonic() + 20
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.reason is None and time.monotonic() < end:
        time.sleep(0.02)
print(stop.reason, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_death_of_an_ancestor_stops_the_run(tmp_path: Path, number: signal.Signals):
    """dvc -> shell -> stage: only dvc is killed."""
    dvc = tmp_path / "dvc"
    dvc.symlink_to(shutil.which("bash") or "/bin/bash")
    (tmp_path / "child.py").write_text(CHILD)
    inner = f"'{sys.executable}' '{tmp_path}/child.py'; true"
    process = subprocess.Popen(
        [str(dvc), "-c", f'bash -c "{inner}"; true'],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    process.wait(10)
    assert process.stdout.readline() == f"dvc ({process.pid}) died\n"


SAVING = """
import sys, time
from pathlib import Path
from ldm.compute.stopping import StopRequest
end = time.monotonic() + 20
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.reason is None and time.monotonic() < end:
        print("a line", flush=True)
        print("a bar", end="\\r", file=sys.stderr, flush=True)
        time.sleep(0.01)
    print("saving", flush=True)
    Path(sys.argv[1]).write_text(stop.reason or "none")
"""


def test_a_closed_terminal_stops_a_run_which_saves_its_state(tmp_path: Path):
    """The terminal's other end goes away: the kernel sends SIGHUP, and every write fails with EIO."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", SAVING, str(tmp_path / "saved")])
    said = b""
    while b"a line" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    os.waitpid(child, 0)
    assert (tmp_path / "saved").read_text() == "SIGHUP received"


def test_a_closed_pipe_ends_no_run(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(tmp_path / "saved")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.stdout.close()
    time.sleep(0.1)
    process.terminate()
    process.wait(10)
    assert (tmp_path / "saved").read_text() == "SIGTERM received"
