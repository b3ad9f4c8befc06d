"""SHA-256 of files, and a memory of files that were hashed before: each is read for its hash once per machine.

The memory is a folder of notes, `hashed` in the folder that the environment variable LDM_CACHE names, or else in
`~/.cache/ldm`. A note says which hash a file had, and how the file looked then: its size, modification time and inode,
which is what DVC goes by too. A file that looks otherwise is hashed again. If notes cannot be written, every file is
hashed each time. `ldm verify` never looks at them: only hashing finds a bit that the disk itself has lost.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from ldm.core.errors import IntegrityError

_FIX = "run `dvc checkout` or `dvc pull` to get a good copy, or `dvc repro` to write it again"
_SETTLED_SECONDS = 2
"""A file that was changed this recently may change again within one tick of its clock, and look the same."""


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, sha256: str) -> None:
    """IntegrityError unless `path` is a file with this hash."""
    if not path.is_file():
        raise IntegrityError(str(path), "no such file", f"a file with SHA-256 {sha256}", _FIX)
    actual = sha256_file(path)
    if actual != sha256:
        raise IntegrityError(str(path), f"SHA-256 {actual}", f"SHA-256 {sha256}", _FIX)


def check_once(path: Path, sha256: str) -> None:
    """`check_file`, unless this machine remembers that the file had this hash and looked as it does now."""
    if is_known(path, sha256):
        return
    start, before = time.time(), _looks(path)
    check_file(path, sha256)
    is_settled = before is not None and before == _looks(path) and path.stat().st_mtime < start - _SETTLED_SECONDS
    if is_settled:
        with suppress(OSError, RuntimeError):
            note = _note(path)
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{sha256} {before}\n", encoding="ascii")


def is_known(path: Path, sha256: str) -> bool:
    """Whether `check_once` would not read the file."""
    # A note that is cut or garbled is no note: its file is hashed again.
    with suppress(OSError, RuntimeError, ValueError):
        return _note(path).read_text(encoding="ascii") == f"{sha256} {_looks(path)}\n"
    return False


def _looks(path: Path) -> str | None:
    """Size in bytes, modification time in ns, and inode of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"


def _note(path: Path) -> Path:
    """Where the note about a file is. RuntimeError: this user has no home."""
    cache = Path(os.environ.get("LDM_CACHE") or "~/.cache/ldm").expanduser()
    return cache / "hashed" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
