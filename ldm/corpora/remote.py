"""Files that lie elsewhere: a manifest lists them, and `fsspec` reads them (s3://, gs://, https://, file://, ...).

A manifest is lines of JSON: first {"url": ...}, then one {"name", "size", "etag"} per file. It lies in the folder of
what users bring, so that DVC hashes it: a file that changed at its place has another ETag, once `ldm manifest` has
looked again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from ldm.core.errors import ConfigError, MachineError, UserError
from ldm.corpora.pairs import Rejected

T = TypeVar("T")
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "Last-Modified", "mtime", "created")
"""Under which names file systems tell what changes with the bytes of a file, the best first."""
_BLOCK = 1 << 22
"""Bytes of a request."""


class Entry(BaseModel):
    """One file of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    """Path below the URL, with "/"."""
    size: NonNegativeInt
    """In bytes."""
    etag: str
    """Changes with the bytes of the file: its ETag, or what the file system has in place of one."""


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    url: str


def listed(url: str) -> Iterator[Entry]:
    """All files below a URL, ordered by name.

    Raises:
        ConfigError: there are none, or fsspec does not know such URLs. MachineError: the place cannot be reached.
    """
    system, root = _opened(url)
    try:
        found = _tried(url, lambda: cast("dict[str, dict[str, Any]]", system.find(root, detail=True)))
    except Rejected as error:
        raise ConfigError(url, error.detail, "a place with files", "correct the URL, or your rights") from None
    files = {path: facts for path, facts in found.items() if facts["type"] == "file" or facts.get("islink")}
    if not files:
        raise ConfigError(url, "no files", "a folder or prefix with files below it", "look for an error in the URL")
    if root in files:
        raise ConfigError(url, "a file", "a folder or prefix with files below it", f"name {url.rpartition('/')[0]}")
    for path, facts in sorted(files.items()):
        _check_name(url, path)
        if facts.get("islink"):
            facts = _led_to(system, path)
        state = _state(facts) or _state(_tried(url, partial(system.info, path)))
        if state is None:
            fix = "copy the files to a place that does, such as S3 or a folder"
            raise ConfigError(f"{url}: {path}", "neither ETag nor time", "a place that tells when a file changes", fix)
        size, tag = state
        yield Entry(name=path.removeprefix(root).lstrip("/"), size=size, etag=tag)


def _check_name(url: str, path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{url}: {path!a}", "a name that is not UTF-8", "names in UTF-8", "rename it") from None


def _led_to(system: Any, path: str) -> dict[str, Any]:
    """What a link of a local folder leads to. ConfigError: no file."""
    try:
        facts = cast("dict[str, Any]", system.info(path))
    except OSError as error:
        facts = {"type": error.strerror or "nothing"}
    if facts["type"] != "file":
        fix = "put the files there that it leads to, or remove it"
        raise ConfigError(path, f"a link to no file ({facts['type']})", "files, or links to files", fix)
    return facts


def write(url: str, path: Path) -> int:
    """Write the manifest of a URL, as a whole or not at all, and return the number of its files. Raises as `listed`
    does."""
    entries = list(listed(url))
    lines = [_Head(url=url.rstrip("/")).model_dump_json(), *(entry.model_dump_json() for entry in entries)]
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return len(entries)


def entries(path: Path) -> dict[str, Entry]:
    """The files of a manifest by name. ConfigError: it is not one, with the number of the line that is wrong."""
    return _entries(path.resolve(), path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _entries(path: Path, _: int) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    with path.open("rb") as file:
        next(file, None)
        for number, line in enumerate(file, 2):
            entry = _parsed(Entry, line, path, number)
            found[entry.name] = entry
    return found


def _entry(path: Path, name: str) -> Entry:
    if (entry := entries(path).get(name)) is None:
        raise Rejected("UNREADABLE", f"{name}: not in the manifest {path.name}")
    return entry


def read(path: Path, name: str, offset: int, size: int | None) -> bytes:
    """Bytes of a file of a manifest: `size` from `offset` on, or all that follow. Neighbouring reads cost one request.

    Raises:
        Rejected: UNREADABLE, the file is gone, not listed or may not be read; CHANGED, it is another one than the
            manifest says.
        MachineError: its place cannot be reached.
    """
    entry = _entry(path, name)
    url, length = f"{url_of(path)}/{name}", entry.size
    _check(url, length, entry.etag)
    end = length if size is None else min(offset + size, length)
    if offset >= end:
        return b""
    if size is None:
        return _fetched(url, offset, end)
    first, last = offset // _BLOCK, (end - 1) // _BLOCK
    blocks = [_block(url, length, number) for number in range(first, last + 1)]
    return b"".join(blocks)[offset - first * _BLOCK : end - first * _BLOCK]


@lru_cache(maxsize=1024)
def _check(url: str, size: int, etag: str) -> None:
    """Rejected: the file is not as its manifest says."""
    system, place = _opened(url)
    system.invalidate_cache()
    if _state(_tried(url, partial(system.info, place))) != (size, etag):
        raise Rejected("CHANGED", f"{url}: its size or ETag is another than in its manifest; run `ldm manifest` again")


def sha256(path: Path, name: str) -> str:
    """What changes with a file of a manifest: a hash of its place, size and ETag, for which nothing is read. Rejected:
    UNREADABLE, the manifest does not list it."""
    entry = _entry(path, name)
    return hashlib.sha256(json.dumps([url_of(path), name, entry.size, entry.etag]).encode()).hexdigest()


def url_of(path: Path) -> str:
    """The URL of a manifest. ConfigError: it is not a manifest."""
    return _url_of(path.resolve(), path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _url_of(path: Path, _: int) -> str:
    with path.open("rb") as file:
        return _parsed(_Head, file.readline(), path, 1).url


@lru_cache(maxsize=8)
def _block(url: str, length: int, number: int) -> bytes:
    return _fetched(url, number * _BLOCK, min((number + 1) * _BLOCK, length))


def _fetched(url: str, start: int, end: int) -> bytes:
    system, path = _opened(url)
    data = _tried(url, partial(cast("Callable[..., bytes]", system.cat_file), path, start=start, end=end))
    # Some servers send the whole file, whatever part is asked for.
    return data if len(data) <= end - start else data[start:end]


def _opened(url: str) -> tuple[Any, str]:
    """File system and path of a URL; fsspec keeps one file system per process."""
    known = "a URL such as s3://bucket/folder, gs://..., https://... or file:///folder"
    if "://" not in url:
        raise ConfigError(url, "no URL", known, "add what it begins with; file:// for a folder of this machine")
    try:
        return cast("tuple[Any, str]", fsspec.url_to_fs(url))  # pyright: ignore[reportUnknownMemberType]
    except (ImportError, ValueError) as error:
        raise ConfigError(url, str(error), known, "correct it, or install the package that fsspec names") from None


def _tried(url: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except UserError:
        raise
    except _network_errors() as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) and not _is_unreached(error):
            found = error.strerror or str(error) or "no such file"
            raise Rejected("UNREADABLE", f"{url}: {found}") from None
        found = " ".join(str(error).split()) or type(error).__name__
        fix = "see to network and credentials, then run this again: what is done is kept"
        raise MachineError(url, found, "a place that answers", fix) from None


def _is_unreached(error: OSError) -> bool:
    """Whether a file was not found because its server did not answer, as fsspec has it for web pages."""
    from aiohttp import ClientConnectionError

    return isinstance(error.__cause__, ClientConnectionError)


def _network_errors() -> tuple[type[Exception], ...]:
    # Libraries below fsspec raise errors of their own. That of S3 is an extra.
    from aiohttp import ClientError

    if find_spec("botocore") is None:
        return OSError, ClientError
    from botocore.exceptions import BotoCoreError

    return OSError, ClientError, BotoCoreError


def _state(facts: dict[str, Any]) -> tuple[int, str] | None:
    """Size of a file, and what changes with its bytes; None if the file system has not told both."""
    tag = next((facts[name] for name in _TAGS if facts.get(name)), None)
    return None if tag is None or facts["size"] is None else (facts["size"], str(tag).strip('"'))


M = TypeVar("M", bound=BaseModel)


def _parsed(kind: type[M], line: bytes, path: Path, number: int) -> M:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        expected = f"JSON with {', '.join(kind.model_fields)}"
        fix = f"write it again: ldm manifest URL {path}"
        raise ConfigError(f"{path}:{number}", error.errors()[0]["msg"], expected, fix) from None
