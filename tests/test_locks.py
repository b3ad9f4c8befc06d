"""One holder at a time, and one line where there is no lock to be had."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ldm.core import locks
from ldm.core.errors import MachineError
from tests.import_closure import ROOT


def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    held = locks.take(path)
    with pytest.raises(MachineError, match=rf"lock: a run is already .*pid {os.getpid()} on .* since \d{{4}}-"):
        locks.take(path)
    locks.release(held)
    locks.release(locks.take(path))


def test_a_folder_loses_its_name_and_its_lock_before_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS would keep an open file, and the folder with it."""
    folder, real = tmp_path / "run", shutil.rmtree
    held = locks.take(folder / "lock")

    def remove(path: Path, ignore_errors: bool) -> None:
        opened = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()]
        assert not folder.exists() and path.name.startswith(locks.GONE) and not any(str(path) in o for o in opened)
        locks.release(locks.take(folder / "lock"))
        real(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", remove)
    locks.remove_folder(folder, held)
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "what began meanwhile"


def test_who_only_asks_for_the_holder_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    asking = os.open(path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as `holder`, in its moment
    done = threading.Timer(0.2, os.close, [asking])
    done.start()
    locks.release(locks.take(path))
    done.join()


def test_a_lock_falls_with_its_process(tmp_path: Path) -> None:
    code = "import sys, os, signal; from ldm.core import locks; from pathlib import Path\n"
    code += "locks.take(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    locks.release(locks.take(tmp_path / "lock"))


def test_a_lock_file_removed_by_its_holder_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").touch()
    real = os.open
    paths: list[object] = []

    def open_late(path: object, *args: int) -> int:
        file = real(path, *args)
        paths.append(path)
        if len(paths) == 1:
            (tmp_path / "lock").unlink()
        return file

    monkeypatch.setattr(os, "open", open_late)
    held = locks.take(tmp_path / "lock")
    assert os.fstat(held).st_ino == (tmp_path / "lock").stat().st_ino
    os.close(held)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(MachineError, match=r"no locks .*; expected a file system with flock\nfix: mount it with"):
        locks.take(tmp_path / "lock")


def test_another_refusal_of_the_system_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        locks.take(tmp_path / "lock")
    assert set(os.listdir("/proc/self/fd")) == before, "no descriptor is left open"
