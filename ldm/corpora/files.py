"""The files that users bring: listed in an order that does not depend on the file system, and read in parts."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ldm.core.errors import ConfigError
from ldm.corpora.pairs import Rejected


@dataclass(frozen=True)
class File:
    """A file of a corpus."""

    name: str
    """Path below the root, with "/"; bytes that are not UTF-8 are surrogates, as Python reads them."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Files:
    """All files below a folder. Picklable, so that worker processes can read."""

    root: Path

    def list(self) -> list[File]:
        """All files, ordered by name. ConfigError: a folder cannot be listed."""
        found: list[File] = []
        for folder, folders, names in os.walk(self.root, onerror=_refuse):
            folders.sort()
            for name in names:
                path = os.path.join(folder, name)
                size = os.stat(path).st_size if os.path.exists(path) else 0
                found.append(File(os.path.relpath(path, self.root).replace(os.sep, "/"), size))
        return sorted(found, key=lambda file: file.name)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes of a file: `size` from `offset` on, or all that follow. Rejected: UNREADABLE."""
        try:
            with open(self.root / name, "rb") as file:
                file.seek(offset)
                return file.read() if size is None else file.read(size)
        except OSError as error:
            raise Rejected("UNREADABLE", str(error.strerror)) from None

    def sha256(self, name: str) -> str:
        """SHA-256 of a file's bytes. Rejected: UNREADABLE."""
        try:
            with open(self.root / name, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Rejected("UNREADABLE", str(error.strerror)) from None


def _refuse(error: OSError) -> None:
    raise ConfigError(str(error.filename), str(error.strerror), "a folder that can be listed", "change its permissions")
