"""Numbered PNGs in a folder. A file is replaced only if that is asked for, even with two processes at once, and appears
as a whole or not at all."""

import errno
import os
import re
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm.core.errors import ConfigError, MachineError

_NAME = re.compile(r"(\d{4,})\.png", re.ASCII | re.IGNORECASE)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of file systems without hard links."""


class PngFolder:
    """0000.png, 0001.png, ... in an existing folder; `paths` are those that were written."""

    def __init__(self, directory: Path, first: int, overwrite: bool, rest: Callable[[int], str] | None = None) -> None:
        """first: number of the first file. If the folder has higher ones, numbers go on after the highest; with
        `overwrite` they do not, and existing files are replaced one by one. rest: how a user gets the images that are
        missing once so many are written; None = by their number."""
        self.directory = directory
        self.paths: list[Path] = []
        self._overwrite = overwrite
        self._first = first
        self._rest = rest
        numbers = [int(match[1]) for entry in directory.iterdir() if (match := _NAME.fullmatch(entry.name))]
        self._next = first if overwrite else max([first - 1, *numbers]) + 1

    def add(self, png: bytes) -> Path:
        """Write one more file and return its path. MachineError: the folder or the disk does not take it."""
        while True:
            path = self.directory / f"{self._next:04d}.png"
            try:
                save(path, png, self._overwrite)
            except FileExistsError:  # another process took the number
                self._next += 1
                continue
            except OSError as error:
                found = f"{error.strerror or error}, after {len(self.paths)} image(s)"
                fix = f"free space or name another folder, then {self.rest}"
                raise MachineError(str(path), found, "a disk that takes it", fix) from error
            self._next += 1
            self.paths.append(path)
            return path

    @property
    def rest(self) -> str:
        """What a user does to get the images that are still missing."""
        if not self.paths:
            return "run it again"
        if self._rest is not None:
            return self._rest(len(self.paths))
        return f"give the prompts that are left and --start-number {self._first + len(self.paths)}"


@contextmanager
def opened(
    directory: Path, first: int, overwrite: bool, rest: Callable[[int], str] | None = None
) -> Generator[PngFolder]:
    """A folder for images, created if it is missing, and tested by a write before any work. Folders created here are
    removed if no image was written. first, overwrite, rest: as in `PngFolder`.

    Raises:
        ConfigError: it is a file.
        MachineError: it cannot be created, or is not writable.
    """
    created: list[Path] = []
    try:
        with _refused(directory):
            if directory.is_file():
                raise ConfigError(str(directory), "a file", "a folder, or a new name for one", "name another")
            created = [folder for folder in (directory, *directory.parents) if not folder.exists()]
            directory.mkdir(parents=True, exist_ok=True)
            _try(directory)
            folder = PngFolder(directory, first, overwrite, rest)
        yield folder
    except BaseException:
        _remove_empty(created)
        raise


def check_new(path: Path, overwrite: bool) -> None:
    """Check a path before the work whose result is saved there. ConfigError: it exists already, unless `overwrite`; it
    is a device or a pipe, which a file would replace; or its folder does not exist. MachineError: the folder is not
    writable."""
    with _refused(path.parent):
        if not path.parent.is_dir():
            raise ConfigError(str(path), f"no folder {path.parent}", "an existing folder", "make the folder")
        if path.is_dir():
            raise ConfigError(str(path), "a folder", "a file", "name a file in it")
        if path.exists() and not path.is_file():
            raise ConfigError(str(path), "a device or a pipe", "a file, or a new name for one", "name another")
        if not overwrite and os.path.lexists(path):
            fix = "name another, or add --overwrite"
            raise ConfigError(str(path), "a file that exists already", "a new one", fix)
        _try(path.parent)


def save(path: Path, data: bytes, overwrite: bool) -> None:
    """Write a file as a whole or not at all, with the mode of the umask. FileExistsError: it exists, and `overwrite`
    is false."""
    part = _part(path.parent)
    try:
        with part.open("xb") as file:
            file.write(data)
        if overwrite:
            part.replace(path)
        else:
            _rename_to_new(part, path)
    finally:
        part.unlink(missing_ok=True)


def _rename_to_new(part: Path, path: Path) -> None:
    """Unlike a rename, a link does not replace a file that another process has put there meanwhile."""
    try:
        path.hardlink_to(part)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        path.touch(exist_ok=False)
        part.replace(path)


@contextmanager
def _refused(directory: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        found = f"no file can be made there ({error.strerror or error})"
        fix = "name another folder, or let this one take files"
        raise MachineError(str(directory), found, "a folder that takes files", fix) from error


def _try(directory: Path) -> None:
    part = _part(directory)
    try:
        part.write_bytes(b"a full disk takes no byte")
    finally:
        part.unlink(missing_ok=True)


def _part(directory: Path) -> Path:
    return directory / f".{secrets.token_hex(4)}.part"


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of the folders that are empty; inner ones come first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
