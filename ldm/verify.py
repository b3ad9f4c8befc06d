"""Is every byte of the results what the commit says: in the workspace, in DVC's cache, in a remote?

DVC hashes a file when it adds it and trusts its cache by file mode from then on; a remote it trusts by name. Here every
byte is read again.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm import config, lineage
from ldm.errors import ConfigError, IntegrityError
from ldm.params.paths import PathsParams
from ldm.progress import each

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Object:
    """One file that the commit's outs hold: its MD5 and its place in the workspace."""

    md5: str
    path: Path
    stage: str
    """What makes it anew."""
    listing: str | None = None
    """Hash of the listing that it stands in, for a file of a folder."""


@dataclass(frozen=True)
class Report:
    """Number of bytes and objects read, findings of what is wrong, and notes of what is only left over."""

    num_objects: int
    num_bytes: int
    problems: list[IntegrityError]
    notes: list[str]


def local(root: Path = Path()) -> Report:
    """Hash everything that the outs of the current commit hold, in the workspace and in the cache, then follow the
    passports. ConfigError: `root` is no DVC repository, or nothing was run in it."""
    repo = _open(root)
    stores = _Stores(repo)
    problems: list[IntegrityError] = []
    objects = _objects(repo, stores, stores.cache, problems)
    num_bytes = 0
    for item in each(objects, "verify", "file", len(objects)):
        found = {"the workspace": md5_of_file(item.path), "the cache": stores.md5(stores.cache, item.md5)}
        num_bytes += item.path.stat().st_size if item.path.is_file() else 0
        if any(md5 != item.md5 for md5 in found.values()):
            problems += _describe(item, found, stores, stores.cache)
    problems += _unrecorded(repo, objects)
    paths = config.read(PathsParams, "paths", root / config.PARAMS)
    frozen = {stage.addressing for stage in repo.index.stages if stage.frozen}
    problems += lineage.check(root, paths, frozen)
    return Report(len(objects), num_bytes, problems, [])


def remote(name: str | None = None, root: Path = Path()) -> Report:
    """Hash everything that the outs of the current commit should have in a remote, and list what no commit uses.

    ConfigError: there is no such remote.
    """
    repo = _open(root)
    stores = _Stores(repo)
    store = stores.remote(name)
    problems: list[IntegrityError] = []
    objects = _objects(repo, stores, store, problems)
    num_bytes = 0
    distinct = {item.md5: item for item in objects}.values()
    for item in each(distinct, "verify --remote", "file", len(distinct)):
        found = stores.md5(store, item.md5)
        if found != item.md5:
            problems += _describe(item, {f"remote {store.path}": found}, stores, store)
        else:
            num_bytes += int(store.fs.size(store.oid_to_path(item.md5)))
    return Report(len(objects), num_bytes, problems, _leftovers(repo, store))


def _open(root: Path) -> Any:
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        repo = Repo(str(root))
    except NotDvcRepoError:
        raise ConfigError(str(root.resolve()), "no DVC repository", "one", "run it in the repository") from None
    if not any(out.hash_info for out in repo.index.outs):
        raise ConfigError("dvc.lock", "records no results", "the results of `dvc repro`", "run `dvc repro`")
    return repo


class _Stores:
    """Where objects lie by hash: the cache, and remotes by name."""

    def __init__(self, repo: Any) -> None:
        self._repo = repo
        self.cache: Any = repo.cache.local
        self.names: list[str] = sorted(repo.config["remote"])
        self.memory = Path(repo.site_cache_dir) / "index"
        """Where DVC remembers what it pushed."""

    def remote(self, name: str | None) -> Any:
        name = name or self._repo.config["core"].get("remote")
        if name not in self.names:
            found = f"no remote {name!r}" if name else "no default remote"
            raise ConfigError("DVC", found, f"one of {self.names}", "name one, or `dvc remote add -d NAME URL`")
        return self._repo.cloud.get_remote_odb(name)

    def md5(self, store: Any, oid: str) -> str | None:
        """MD5 of what a store holds under a hash, or None."""
        path = store.oid_to_path(oid)
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with store.fs.open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"unreadable: {error}"
        return digest.hexdigest() + (".dir" if oid.endswith(".dir") else "")

    def holders(self, oid: str) -> list[str]:
        """Names of the remotes that hold a good copy; one that does not answer holds none."""
        return [name for name in self.names if self.md5(self.remote(name), oid) == oid]


def _objects(repo: Any, stores: _Stores, store: Any, problems: list[IntegrityError]) -> list[Object]:
    """All files of the commit's outs. The listing of a folder is an object too: if `store` has no good one, that is a
    problem, and the folder is read by another copy, if there is one."""
    objects: list[Object] = []
    for out in repo.index.outs:
        if not out.use_cache or not out.hash_info:
            continue
        md5, path, stage = str(out.hash_info.value), Path(out.fs_path), str(out.stage.addressing)
        if not md5.endswith(".dir"):
            objects.append(Object(md5, path, stage))
            continue
        found = stores.md5(store, md5)
        good = [other for other in (store, stores.cache) if stores.md5(other, md5) == md5]
        if found != md5:
            bad = Object(md5, path, stage)
            problems += _describe(bad, {f"the listing in {store.path}": found}, stores, store)
        if good:
            listing = json.loads(good[0].fs.cat_file(good[0].oid_to_path(md5)))
            objects += [Object(entry["md5"], path / entry["relpath"], stage, md5) for entry in listing]
    return objects


def _describe(item: Object, found: dict[str, str | None], stores: _Stores, store: Any) -> list[IntegrityError]:
    """One error for each bad copy, with both hashes and the way to a good one."""

    def bad(fix: str) -> list[IntegrityError]:
        wrong = {where: md5 for where, md5 in found.items() if md5 != item.md5}
        expected = f"MD5 {item.md5}"
        return [
            IntegrityError(str(item.path), f"{where} has {_told(md5)}", expected, fix) for where, md5 in wrong.items()
        ]

    cached = stores.cache.oid_to_path(item.md5)
    if found.get("the cache") == item.md5:
        return bad(f"the cache has a good copy: rm -f {item.path}; dvc checkout {item.path}")
    if found.get("the workspace") == item.md5:
        again = f"mkdir -p {Path(cached).parent}; rm -f {cached}; cp {item.path} {cached}; chmod 444 {cached}"
        return bad(f"the workspace has a good copy: {again}")
    if store is not stores.cache and stores.md5(stores.cache, item.md5) == item.md5:
        # DVC takes a folder for pushed if its listing is there, and remembers that.
        paths = ", ".join(store.oid_to_path(oid) for oid in (item.md5, item.listing) if oid is not None)
        again = f"delete {paths} from the remote; rm -rf {stores.memory}; dvc push"
        return bad(f"the cache has a good copy: {again}")
    if holders := stores.holders(item.md5):
        again = f"rm -f {cached} {item.path}; dvc fetch --remote {holders[0]} {item.stage}; dvc checkout {item.path}"
        return bad(f"remote {', '.join(holders)} has a good copy: {again}")
    nobody = f"no good copy in the cache or in remotes {stores.names}"
    return bad(f"{nobody}: ask whoever has one, or dvc repro --force {item.stage}")


def _unrecorded(repo: Any, objects: list[Object]) -> Iterator[IntegrityError]:
    """Files in the folders of outs that the commit does not hold; nobody knows of a folder whose listing is lost."""
    known, listings = {item.path for item in objects}, {item.listing for item in objects}
    for out in repo.index.outs:
        folder = Path(out.fs_path)
        if out.hash_info and str(out.hash_info.value) in listings and folder.is_dir():
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path not in known:
                    yield IntegrityError(str(path), "a file that dvc.lock does not record", "none", "move it elsewhere")


def _leftovers(repo: Any, store: Any) -> list[str]:
    """Files of a remote that no commit known here uses: results given up, or what a cut push left."""
    from dvc.exceptions import DvcException

    # DVC would warn of every commit without dvc.lock, and of listings that were never pushed.
    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    try:
        # force: a listing that is nowhere is passed over, where DVC would ask.
        groups = repo.used_objs(all_commits=True, all_experiments=True, force=True)
    except DvcException as error:
        return [f"leftovers are not known: {error}"]
    used = {store.oid_to_path(str(info.value)) for infos in groups.values() for info in infos}
    there = sorted(str(path) for path in store.fs.find(store.path))
    return [f"{path}: no commit known here uses it (git fetch --all first)" for path in there if path not in used]


def _told(md5: str | None) -> str:
    return "no file" if md5 is None else md5 if md5.startswith("unreadable") else f"MD5 {md5}"


def md5_of_file(path: Path) -> str | None:
    """MD5 of a file's bytes, in hex, or None if there is no file."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        return f"unreadable: {error}"
