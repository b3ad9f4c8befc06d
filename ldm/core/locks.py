"""A lock file, which one process at a time holds, until it lets go or ends.

The lock is `flock`: the system releases it with its holder, however that ends. A file system without `flock` is
refused: a plain file that names its holder would outlive a kill, and nothing could tell whether a holder on another
machine is still running.
"""

import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ldm.core.errors import MachineError

GONE = ".gone."
"""How the name of a folder begins that is being removed."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_PATIENCE_S, _PAUSE_S = 1.0, 0.02


def take(path: Path) -> int:
    """Lock a file until the returned descriptor is closed. File and folder are created if they are missing.

    Raises:
        MachineError: another process holds it, or the file system has no locks. OSError: it cannot be opened.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
        except OSError as error:
            refusal = _refusal(path, file, error)
            os.close(file)
            if refusal is None:
                raise
            raise refusal from None
        with suppress(FileNotFoundError):
            if os.fstat(file).st_ino == path.stat().st_ino:
                break
        os.close(file)  # its former holder removed it between open and flock
    os.truncate(file, 0)
    os.write(file, f"pid {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}".encode())
    return file


def _lock(file: int) -> None:
    """Lock an open file for this process. OSError: as `flock`; BlockingIOError, once it was tried for a while: who asks
    for the holder by `holder` has a lock for a moment, too."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(_PAUSE_S)


def release(file: int) -> None:
    """Let go of what `take` returned."""
    os.close(file)


def remove_folder(folder: Path, file: int) -> bool:
    """Remove the folder in which a lock file is, and let go of the lock, which `take` returned. The folder loses its
    name first, so that nobody finds it half removed. Returns whether all of it is gone. OSError: it cannot be renamed.

    The file is closed before it is removed: NFS keeps what is open under another name, and the folder with it. So it
    does with what another process has open: that stays, under a name that begins with `GONE`.
    """
    gone = folder if folder.name.startswith(GONE) else folder.with_name(f"{GONE}{folder.name}.{os.getpid()}")
    try:
        folder.rename(gone)
    finally:
        release(file)
    shutil.rmtree(gone, ignore_errors=True)
    return not gone.exists()


@contextmanager
def held(path: Path) -> Generator[None]:
    """A block in which no other process holds the lock file. Errors: as `take`."""
    file = take(path)
    try:
        yield
    finally:
        release(file)


def holder(path: Path) -> str | None:
    """The process that holds a lock file, as it describes itself there; None if nobody does. Needs only read access."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(file, 1000).decode(errors="replace")
    finally:
        os.close(file)
    return None


def _refusal(path: Path, file: int, error: OSError) -> MachineError | None:
    if isinstance(error, BlockingIOError):
        holder = os.read(file, 1000).decode(errors="replace")
        fix = "wait for it, or stop it and run this again"
        return MachineError(str(path), f"a run is already going on here ({holder})", "no other", fix)
    if error.errno in _NO_LOCKS:
        fix = "mount it with flock (Lustre: -o flock; NFS: version 4, or a lock daemon), or work on another disk"
        return MachineError(str(path), f"no locks ({error.strerror})", "a file system with flock", fix)
    return None
