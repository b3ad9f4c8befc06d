"""The files that users bring: listed in an order that does not depend on the file system, and read in parts.

They lie in a folder, or elsewhere if `root` is a manifest (`ldm.corpora.remote`).
"""

import fnmatch
import hashlib
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from ldm.core import workspace
from ldm.core.errors import ConfigError
from ldm.corpora import remote
from ldm.corpora.pairs import Litter, Rejected


@dataclass(frozen=True, slots=True)
class File:
    """A file of a corpus."""

    name: str
    """Path below the root, with "/"; bytes that are not UTF-8 are surrogates, as Python reads them."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Files:
    """All files below a folder, or of a manifest. Picklable, so that worker processes can read."""

    root: Path
    """The folder, or the manifest, whose name ends in .jsonl."""

    @classmethod
    def below(cls, source: Path, directory: str) -> Self:
        """The files of a corpus below `paths.source`, of which DVC must see every one. ConfigError: there is neither
        such a folder nor such a manifest, or a link leads to it."""
        files = cls(source / directory)
        steps = [Path(directory), *Path(directory).parents][:-1] if directory != "." else []
        if (link := next((source / step for step in steps if (source / step).is_symlink()), None)) is not None:
            raise _linked(link)
        if not (files.root.is_file() if files.is_remote else files.root.is_dir()):
            found, expected = "no such folder", "a folder, or a manifest .jsonl"
            fix = workspace.left_behind(files.root) or "create it, name another folder, or write it: ldm manifest URL"
            raise ConfigError(f"prepare.corpus.directory: {files.root}", found, expected, fix)
        workspace.warn_of_left_behind(files.root)
        return files

    @property
    def is_remote(self) -> bool:
        """Whether the files lie elsewhere."""
        return self.root.suffix == ".jsonl"

    def list(self) -> list[File]:
        """All files, ordered by name. ConfigError: a folder cannot be listed or is a link, or a manifest is
        none."""
        if self.is_remote:
            found = [File(entry.name, entry.size) for entry in remote.entries(self.root).values()]
        else:
            found = list(_walked(self.root))
        return sorted(found, key=lambda file: file.name)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes of a file: `size` from `offset` on, or all that follow. Rejected: UNREADABLE. MachineError: the place
        of remote files cannot be reached."""
        if self.is_remote:
            return remote.read(self.root, name, offset, size)
        try:
            with _opened(self.root / name) as file:
                file.seek(offset)
                return file.read() if size is None else file.read(size)
        except (OSError, ValueError) as error:  # ValueError: a zero character in a name
            raise Rejected("UNREADABLE", str(getattr(error, "strerror", None) or error)) from None

    def sha256(self, name: str) -> str:
        """SHA-256 of a file's bytes; of its ETag, if it is remote. Rejected: UNREADABLE."""
        if self.is_remote:
            return remote.sha256(self.root, name)
        try:
            with _opened(self.root / name) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError) as error:  # ValueError: a zero character in a name
            raise Rejected("UNREADABLE", str(getattr(error, "strerror", None) or error)) from None

    def sha256_of(self, names: Iterable[str]) -> str:
        """SHA-256 over names and bytes of some files, for a unit of work that is made from them. A file that cannot be
        read counts as such."""
        digest = hashlib.sha256()
        for name in names:
            try:
                sha256 = self.sha256(name)
            except Rejected as error:
                sha256 = error.detail
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + sha256.encode() + b"\0")
        return digest.hexdigest()


def _opened(path: Path) -> io.BufferedReader:
    """A file, open to be read. OSError; Rejected: UNREADABLE, it is a pipe or a device, which may have no end."""
    if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
        raise Rejected("UNREADABLE", "a pipe, a device or the like, and no file")
    return open(path, "rb")


def is_ignored(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path is hidden, or a part of it has one of the names that the params ignore. Hidden are also
    @eaDir, where Synology keeps thumbnails, and __MACOSX, where zips of a Mac keep what it knows of files."""
    ignored = _ignored(tuple(patterns))
    return any(ignored.match(part) for part in name.lower().split("/"))


@cache
def _ignored(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(
        "|".join([r"\.(?!\.?$)", "(@eadir|__macosx)$", *(fnmatch.translate(each.lower()) for each in patterns)])
    )


def litter(names: Iterable[str]) -> Litter:
    """Files that hold no sample, the most frequent suffix first."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without suffix" for name in names)
    return Litter({in_utf8(suffix): count for suffix, count in counts.most_common()})


def in_utf8(text: str) -> str:
    """A name whose bytes that are not UTF-8 are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _walked(root: Path) -> Iterator[File]:
    for folder, folders, names in os.walk(root, onerror=_refuse):
        # Nothing is read behind hidden names, whatever they lead to.
        shown = (Path(folder, name) for name in sorted(folders) if not name.startswith("."))
        if (link := next((path for path in shown if path.is_symlink()), None)) is not None:
            raise _linked(link)
        for name in names:
            path = os.path.join(folder, name)
            size = os.stat(path).st_size if os.path.exists(path) else 0
            yield File(os.path.relpath(path, root).replace(os.sep, "/"), size)


def _linked(path: Path) -> ConfigError:
    # DVC hashes a link to a folder as nothing, so `dvc repro` would never notice that a file behind it changed.
    found, expected = f"a link to the folder {path.resolve()}", "a folder, since DVC does not look behind links in it"
    fix = f"move that folder to {path}, or set paths.source in paths.yaml to a folder that holds it"
    return ConfigError(str(path), found, expected, fix)


def _refuse(error: OSError) -> None:
    raise ConfigError(str(error.filename), str(error.strerror), "a folder that can be listed", "change its permissions")
