"""Hash every result again, in the workspace, in DVC's cache or in a remote, and compare it with dvc.lock, and dvc.lock
with the commit.

DVC hashes a file when it adds it. From then on it trusts its cache by file mode, and a remote by name. Here every byte
is read.
"""

import errno
import hashlib
import json
import shlex
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.core import config
from ldm.core.errors import ConfigError, IntegrityError, MachineError, UserError
from ldm.core.params import PathsParams
from ldm.core.progress import each
from ldm.tools import lineage, records

_BLOCK = 1 << 20
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Object:
    """One file of the recorded outs: its MD5 and its place in the workspace."""

    md5: str
    path: Path
    stage: str
    """The stage that produces it."""
    listings: tuple[str, ...] = ()
    """MD5 of the listing that contains it, for a file of a folder; of all, if several folders have this file."""
    lock: Path | None = None
    """The file that records the stage's hashes, for a listing."""


@dataclass(frozen=True)
class Report:
    """What was verified, and the result."""

    num_objects: int
    num_bytes: int
    problems: list[IntegrityError]
    notes: list[str]
    """What else the user should know."""
    record: str
    """The record that the bytes were compared with, in words."""


def local(root: Path = Path()) -> Report:
    """Hash everything in the recorded outs, in the workspace and in the cache, then follow the passports.

    Outs are recorded by the dvc.lock and the .dvc files of the workspace; the notes say where they differ from
    those of HEAD.

    Raises:
        ConfigError: `root` is not a DVC repository in git, or nothing was run in it. IntegrityError: dvc.lock is
            corrupt.
        OSError: a file may not be read.
    """
    with _opened(root) as repo:
        stores = _Stores(repo)
        problems: list[IntegrityError] = []
        objects = _objects(repo, stores, stores.cache, problems)
        num_bytes = 0
        for item in each(objects, "verify", "file", len(objects)):
            copies = {"the workspace": md5_of_file(item.path), "the cache": stores.md5(stores.cache, item.md5)}
            num_bytes += item.path.stat().st_size if item.path.is_file() else 0
            if any(md5 != item.md5 for md5 in copies.values()):
                problems += _describe(item, copies, stores, stores.cache)
        problems += _unrecorded(repo, objects)
        paths = config.read(PathsParams, "paths", root / config.PATHS)
        frozen = {stage.addressing for stage in repo.index.stages if stage.frozen}
        problems += lineage.check(root, paths, frozen)
        record, notes = _record(repo)
        return Report(len(objects), num_bytes, problems, notes, record)


def remote(name: str | None = None, root: Path = Path()) -> Report:
    """Hash everything that a remote should have of the recorded outs, and list what no commit uses.

    Raises as `local` does. ConfigError: there is no such remote. MachineError: it does not answer.
    """
    with _opened(root) as repo:
        stores = _Stores(repo)
        store = stores.remote(name)
        problems: list[IntegrityError] = []
        objects = _objects(repo, stores, store, problems)
        num_bytes = 0
        listings: dict[str, tuple[str, ...]] = {}
        for item in objects:
            listings[item.md5] = tuple(dict.fromkeys([*listings.get(item.md5, ()), *item.listings]))
        distinct = {item.md5: replace(item, listings=listings[item.md5]) for item in objects}.values()
        for item in each(distinct, "verify --remote", "file", len(distinct)):
            md5 = stores.md5(store, item.md5)
            if md5 != item.md5:
                problems += _describe(item, {f"remote {store.path}": md5}, stores, store)
            else:
                with _answering(store.path):
                    num_bytes += int(store.fs.size(store.oid_to_path(item.md5)) or 0)  # not every web server says it
        record, notes = _record(repo)
        return Report(len(objects), num_bytes, problems, [*notes, *_leftovers(repo, stores, store)], record)


@contextmanager
def _opened(root: Path) -> Generator[Any]:
    """DVC's view of a repository, while it is read. Exceptions of DVC become errors of the user."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.scm import SCMError

    where = str(root.resolve())
    with tempfile.TemporaryDirectory() as scratch:
        try:
            repo = _repo(root, scratch)
            if not any(out.hash_info for out in repo.index.outs):
                raise ConfigError("dvc.lock", "records no results", "the results of `dvc repro`", "run `dvc repro`")
            yield repo
        except NotDvcRepoError:
            raise ConfigError(where, "not a DVC repository", "one", "run it in the repository") from None
        except SCMError as error:
            fix = "use a git clone; or, to check without git, `dvc config core.no_scm true`"
            raise ConfigError(where, _line(error), "a git repository", fix) from None
        except DvcException as error:
            if "dvc.lock" in str(error):
                fix = "`git checkout dvc.lock` brings back the committed one"
                raise IntegrityError("dvc.lock", _line(error), "what DVC wrote", fix) from None
            fix = "repair what it names; `git diff` shows what was changed"
            raise ConfigError("DVC", _line(error), "a repository that it reads", fix) from None


def _repo(root: Path, scratch: str) -> Any:
    from dvc.repo import Repo

    class ReadOnly(Repo):
        """A repository whose temporary files are elsewhere, since DVC may not write into this one."""

        tmp_dir: Any = scratch

        def _ignore(self) -> None:
            pass

    try:
        return Repo(str(root))
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        return ReadOnly(str(root), config={"core": {"site_cache_dir": scratch}})


def _record(repo: Any) -> tuple[str, list[str]]:
    """The record that bytes are compared with, in words, and a note for each file of records that differs from HEAD."""
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError as GitError

    if not _is_in_git(repo):
        return "dvc.lock says (there is no git to compare it with)", []
    here = records.of(repo)
    notes: list[str] = []
    try:
        commit = str(repo.scm.get_rev())[:7]
        with repo.switch("HEAD"):
            committed = records.of(repo)
    except (DvcException, GitError) as error:
        return "the workspace's dvc.lock says", [f"dvc.lock is not compared with HEAD: {_line(error)}"]
    for name in sorted({*here, *committed}):
        if changed := records.changes(here.get(name, {}), committed.get(name, {})):
            notes.append(f"{name} differs from HEAD ({commit}) in {', '.join(changed)}")
    if not notes:
        return f"the commit says (HEAD, {commit})", []
    notes.append("`git commit` records what is here; `git checkout NAME` and `dvc checkout` go back to HEAD")
    return "the workspace's dvc.lock and .dvc files say, which are not those of HEAD", notes


def _is_in_git(repo: Any) -> bool:
    from dvc.scm import NoSCM

    return not isinstance(repo.scm, NoSCM)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Stores:
    """Where objects are stored by hash: the cache, and remotes by name."""

    def __init__(self, repo: Any) -> None:
        self._repo = repo
        self.cache: Any = repo.cache.local
        self.names: list[str] = sorted(repo.config["remote"])
        self.memory = Path(repo.site_cache_dir) / "index"
        """The folder where DVC records what it pushed."""

    def remote(self, name: str | None) -> Any:
        name = name or self._repo.config["core"].get("remote")
        if name not in self.names:
            found = f"no remote {name!r}" if name else "no default remote"
            raise ConfigError("DVC", found, f"one of {self.names}", "name one, or `dvc remote add -d NAME URL`")
        with _answering(f"remote {name}"):
            return self._repo.cloud.get_remote_odb(name)

    def md5(self, store: Any, oid: str) -> str | None:
        """MD5 of what a store holds under a hash; None = nothing; or why it cannot be read. MachineError: no answer."""
        path = store.oid_to_path(oid)
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with _answering(path), store.fs.open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except FileNotFoundError:
            return None
        except PermissionError:
            raise
        except OSError as error:
            return f"unreadable: {error}"
        return digest.hexdigest() + (".dir" if oid.endswith(".dir") else "")

    def listing(self, oid: str, *stores: Any) -> list[dict[str, str]] | None:
        """The listing of a folder in the first store that has a good copy. MachineError: no answer."""
        store = next((store for store in stores if self.md5(store, oid) == oid), None)
        return None if store is None else json.loads(store.fs.cat_file(store.oid_to_path(oid)))

    def holders(self, oid: str) -> list[str]:
        """Names of the remotes that hold a good copy; a remote that does not answer counts as one without."""
        from dvc.exceptions import DvcException

        found: list[str] = []
        for name in self.names:
            with suppress(MachineError, DvcException, OSError):
                found += [name] if self.md5(self.remote(name), oid) == oid else []
        return found


@contextmanager
def _answering(where: str) -> Generator[None]:
    """A block that asks a store. MachineError: the library that does so is missing, or raises an error of its own."""
    from dvc.exceptions import DvcException

    try:
        yield
    except (OSError, UserError, DvcException):
        raise
    except Exception as error:
        fix = "install what is named, or look at its address (`dvc remote list`), the network and your credentials"
        found = f"{type(error).__name__}: {_line(error)}"
        raise MachineError(where, found, "a remote that answers", fix) from error


def _objects(repo: Any, stores: _Stores, store: Any, problems: list[IntegrityError]) -> list[Object]:
    """All files of the recorded outs. The listing of a folder is an object too. If `store` has no good copy of it, that
    is a problem; the listing is then read from the cache, or made from the workspace if it has the same hash."""
    objects: list[Object] = []
    for out in repo.index.outs:
        if not out.use_cache or not out.hash_info:
            continue
        md5, path, stage = str(out.hash_info.value), Path(out.fs_path), str(out.stage.addressing)
        if not md5.endswith(".dir"):
            objects.append(Object(md5, path, stage))
            continue
        actual = stores.md5(store, md5)
        kept = stores.listing(md5, store, stores.cache)
        listing = _listing(path, md5) if kept is None else kept
        if actual != md5:
            lock = None if str(out.stage.path).endswith(".dvc") else Path(out.stage.path).with_name("dvc.lock")
            copies = {f"the listing in {store.path}": actual}
            if listing and kept is None:
                copies["the workspace"] = md5
            problems += _describe(Object(md5, path, stage, lock=lock), copies, stores, store)
        objects += [Object(entry["md5"], path / entry["relpath"], stage, (md5,)) for entry in listing or []]
    return objects


def _listing(folder: Path, md5: str) -> list[dict[str, str]] | None:
    """The listing that DVC would write for a folder, if it has this hash: then every file of the folder is right."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            tree.add(path.relative_to(folder).parts, None, HashInfo("md5", md5_of_file(path)))
    tree.digest()
    return tree.as_list() if tree.oid == md5 else None


def _describe(item: Object, copies: dict[str, str | None], stores: _Stores, store: Any) -> list[IntegrityError]:
    """One error for each bad copy, with both hashes and the way to a good copy. copies: place -> MD5 there, as
    `_Stores.md5` returns it."""
    # All bad copies of an object have one fix, which depends on where a good one is.
    fix, expected = _fix(item, copies, stores, store), f"MD5 {item.md5}"
    bad = {place: md5 for place, md5 in copies.items() if md5 != item.md5}
    return [
        IntegrityError(str(item.path), f"{place} has {_in_words(md5)}", expected, fix) for place, md5 in bad.items()
    ]


def _fix(item: Object, copies: dict[str, str | None], stores: _Stores, store: Any) -> str:
    """Where a good copy is, and commands that bring it back."""
    is_listing = item.md5.endswith(".dir")
    cached = stores.cache.oid_to_path(item.md5)
    old, path, stage = shlex.quote(cached), shlex.quote(str(item.path)), shlex.quote(item.stage)
    if copies.get("the cache") == item.md5:
        return f"the cache has a good copy: rm -f {path}; dvc checkout {path}"
    if copies.get("the workspace") == item.md5 and is_listing:
        again = f"dvc commit -f {stage}"
        if item.lock is not None:
            # `dvc commit` would also record params and code that changed after the stage ran.
            lock, kept = (shlex.quote(f"{item.lock}{end}") for end in ("", ".kept"))
            again = f"cp {lock} {kept}; {again}; mv {kept} {lock}"
        return f"every file of the folder is right, its listing is made again from them: rm -f {old}; {again}"
    if copies.get("the workspace") == item.md5:
        folder = shlex.quote(str(Path(cached).parent))
        return f"the workspace has a good copy: mkdir -p {folder}; rm -f {old}; cp {path} {old}; chmod 444 {old}"
    if store is not stores.cache and stores.md5(stores.cache, item.md5) == item.md5:
        # DVC considers a folder pushed if the remote has its listing, and remembers that.
        paths = ", ".join(store.oid_to_path(oid) for oid in (item.md5, *item.listings))
        again = f"delete {paths} from the remote; rm -rf {shlex.quote(str(stores.memory))}; dvc push"
        return f"the cache has a good copy: {again}"
    if holders := stores.holders(item.md5):
        broken = old if is_listing else f"{old} {path}"
        again = f"rm -f {broken}; dvc fetch --remote {holders[0]} {stage}; dvc checkout {path}"
        return f"remote {', '.join(holders)} has a good copy: {again}"
    lost = f"no good copy in the cache or in remotes {stores.names}"
    return f"{lost}: ask whoever has one, or dvc repro --force {stage}"


def _unrecorded(repo: Any, objects: list[Object]) -> Iterator[IntegrityError]:
    """Files in the folders of outs that are not recorded. Folders whose listing is lost are left out: nothing is known
    of them."""
    known, listings = {item.path for item in objects}, {listing for item in objects for listing in item.listings}
    for out in repo.index.outs:
        folder = Path(out.fs_path)
        if out.hash_info and str(out.hash_info.value) in listings and folder.is_dir():
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path not in known:
                    yield IntegrityError(str(path), "a file that dvc.lock does not record", "none", "move it elsewhere")


def _leftovers(repo: Any, stores: _Stores, store: Any) -> list[str]:
    """Files of a remote that no commit known here uses: abandoned results, or the remains of an interrupted push."""
    try:
        with _answering(store.path):
            there = sorted(str(path) for path in store.fs.find(store.path))
    except (MachineError, OSError):  # a web server has no folders
        return [f"leftovers are not known: {store.path} cannot be listed"]
    used = {str(out.hash_info.value) for out in repo.index.outs if out.hash_info}
    try:
        used |= records.hashes(Path(repo.scm.root_dir)) if _is_in_git(repo) else set[str]()
        listings = sorted(oid for oid in used if oid.endswith(".dir"))
        for oid in each(listings, "verify --remote: folders of all commits", "folder", len(listings)):
            used |= {entry["md5"] for entry in stores.listing(oid, stores.cache, store) or []}
    except (MachineError, OSError, subprocess.CalledProcessError) as error:
        return [f"leftovers are not known: {_line(error)}"]
    paths = {store.oid_to_path(oid) for oid in used}
    return [f"{path}: no commit known here uses it (git fetch --all first)" for path in there if path not in paths]


def _in_words(md5: str | None) -> str:
    return "no file" if md5 is None else md5 if md5.startswith("unreadable") else f"MD5 {md5}"


def md5_of_file(path: Path) -> str | None:
    """MD5 of a file's bytes, in hex, or None if there is no file, or the reason why it cannot be read.

    PermissionError: this user may not read it.
    """
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except PermissionError:
        raise
    except OSError as error:
        return f"unreadable: {error}"
