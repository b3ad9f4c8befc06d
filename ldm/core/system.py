"""How a command ends: an error of the system becomes one line with a fix and an exit code, not a traceback."""

import errno
import io
import os
import select
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from ldm.core.errors import IntegrityError, Interrupted, MachineError, UserError

CLOSED_PIPE = 128 + 13
"""Exit code when nobody reads what is printed (`| head -1`), as of a process that SIGPIPE ended."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""Errors of the disk, not of the file."""

_UNKNOWN = "this machine"
_SPACE = (errno.ENOSPC, errno.EDQUOT)
_UNHARMED = "run this again; what was there before is unharmed"
_KINDS: tuple[tuple[tuple[int, ...], str, str], ...] = (
    (_SPACE, "a disk with room for what is written", f"free space, then {_UNHARMED}"),
    ((errno.EFBIG,), "files of any size", f"raise `ulimit -f`, then {_UNHARMED}"),
    ((errno.EIO, errno.ESTALE), "a disk that reads and writes", f"repair or mount the disk again, then {_UNHARMED}"),
    ((errno.EROFS,), "a writable file system", "mount it for writing, or work in a copy of the repository"),
    (
        (errno.EACCES, errno.EPERM),
        "access for this user",
        "see `ls -ld` of it; let its owner allow it (chmod -R u+rwX,a+rX), or work in a copy of your own",
    ),
    (
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
        "a folder where a folder belongs and a file where a file does",
        "move away what is there, or name another path",
    ),
    ((errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL), "a path that the file system accepts", "name another path"),
    (
        (errno.ENOENT,),
        "a file or folder",
        "`dvc repro` or `dvc checkout` brings results back; else name one that exists",
    ),
    ((errno.EBUSY, errno.EXDEV), "a folder that can be renamed", "mount its parent folder instead, not the folder"),
    ((errno.EMFILE, errno.ENFILE), "more open files", "raise `ulimit -n` and run this again"),
    ((errno.ENOMEM, errno.EAGAIN), "free memory and processes", "end other programs, or use a smaller batch"),
)
"""Error numbers, what is expected instead, and the fix."""


def explain(error: OSError, where: str | None = None, kind: type[UserError] | None = None) -> UserError:
    """An `OSError` as a `UserError`. where: the file, if the error does not name it (one of a write does not).

    kind: `ConfigError` for a path that the user named; by default a missing file is an `IntegrityError`, and
    everything else a `MachineError`.
    """
    where = where or (os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else _UNKNOWN)
    unknown = "a system that allows it", "change what the message names; LDM_DEBUG=1 shows where it came from"
    expected, fix = next((texts for numbers, *texts in _KINDS if error.errno in numbers), unknown)
    found = error.strerror or str(error)
    if error.errno in _SPACE and where != _UNKNOWN:
        found += f"; {_free_bytes(Path(where))} bytes are free"
    kind = kind or (IntegrityError if error.errno == errno.ENOENT else MachineError)
    return kind(where, found, expected, fix)


def run(work: Callable[[], None], prefix: str = "", told: Callable[[UserError], str] = str) -> int:
    """Do the work of a command and return its exit code.

    A `UserError`, an `OSError` and Ctrl-C are printed on stderr after `prefix`, as `told` puts them, without a
    traceback unless LDM_DEBUG=1.
    A closed pipe ends the work silently with 141. Text that a terminal cannot encode is printed as escapes.
    """
    for stream in _streams():
        stream.reconfigure(errors="backslashreplace")
    mistake: UserError | None = None
    refused: OSError | None = None
    try:
        work()
    except UserError as error:
        if _is_debugged():
            raise
        mistake = error
    except KeyboardInterrupt:
        if _is_debugged():
            raise
        mistake = Interrupted("Ctrl-C", "stopped before the end", "a whole run", "run it again")
    except OSError as error:
        if error.errno is None or _is_debugged():
            raise
        refused = error
    finally:
        unprinted = _flush()
    is_closed = isinstance(unprinted, BrokenPipeError) or (isinstance(refused, BrokenPipeError) and _is_unread())
    if mistake is None and is_closed:
        return CLOSED_PIPE
    if mistake is None and unprinted is not None:
        found = unprinted.strerror or str(unprinted)
        fix = "let it print elsewhere (> FILE)"
        mistake = MachineError(unprinted.filename, found, "a place for what is printed", fix)
    if mistake is None and refused is not None:
        mistake = explain(refused)
    if mistake is None:
        return 0
    with suppress(OSError):
        print(f"{prefix}{told(mistake)}", file=sys.stderr, flush=True)
    _flush()
    return mistake.exit_code


def _streams() -> list[io.TextIOWrapper]:
    """Standard output and error; either is None if the process was started without it."""
    return [cast(io.TextIOWrapper, stream) for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]


def _flush() -> OSError | None:
    """Flush both streams and return the first error. A stream that fails is redirected to the null device, or the
    interpreter would complain about it when it exits, and change the exit code."""
    first: OSError | None = None
    for stream in _streams():
        try:
            stream.flush()
        except OSError as error:
            error.filename = stream.name
            first = first or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return first


def _is_unread() -> bool:
    """Whether standard output or error is a pipe that nobody reads."""
    poller = select.poll()
    for stream in _streams():
        with suppress(io.UnsupportedOperation):
            poller.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))


def _free_bytes(path: Path) -> int:
    """Free bytes on the disk where a path is, or would be."""
    there = next((part for part in (path.absolute(), *path.absolute().parents) if os.access(part, os.F_OK)), Path("/"))
    return shutil.disk_usage(there).free


def _is_debugged() -> bool:
    return os.environ.get("LDM_DEBUG") == "1"
