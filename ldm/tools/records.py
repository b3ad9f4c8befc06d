"""What dvc.lock and .dvc files record of results: here, in a commit, and in all commits."""

import re
import subprocess
from pathlib import Path
from typing import Any

_HASH = re.compile(rb"\bmd5: ([0-9a-f]{32}(?:\.dir)?)\s")


def of(repo: Any) -> dict[str, dict[str, Any]]:
    """dvc.lock and each .dvc file -> stage -> its record, in the workspace or the commit that `repo` looks at."""
    from dvc.utils.serialize import load_yaml

    records: dict[str, dict[str, Any]] = {}
    for path in sorted({str(stage.path_in_repo) for stage in repo.index.stages}):
        name = path if path.endswith(".dvc") else str(Path(path).with_name("dvc.lock"))
        place = repo.fs.join(repo.root_dir, name)
        values = load_yaml(place, fs=repo.fs) if repo.fs.exists(place) else {}
        records[name] = {"outs": values["outs"]} if name.endswith(".dvc") else values.get("stages", {})
    return records


def changes(here: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """Stages whose records differ, each with the keys that do."""
    found: list[str] = []
    for name in sorted({*here, *committed}):
        ours, theirs = here.get(name), committed.get(name)
        if ours is None or theirs is None:
            found.append(f"{name} (only {'in HEAD' if ours is None else 'here'})")
        elif ours != theirs:
            keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)] if "cmd" in ours else []
            found.append(f"{name} ({', '.join(keys)})" if keys else name)
    return found


def hashes(root: Path) -> set[str]:
    """Every MD5 in a dvc.lock or .dvc file of any commit that this clone has, those of experiments among them. A
    listing of a folder ends in ".dir".

    Git is asked for distinct files alone: DVC would read each commit as a whole, a second for each.

    Raises:
        subprocess.CalledProcessError: git cannot read the repository.
    """
    told = "--raw", "--no-abbrev", "--no-renames", "--format="
    lines = _git(root, "log", "--all", "--full-history", "-m", *told, "--", "*dvc.lock", "*.dvc")
    blobs = {words[place] for line in lines.splitlines() if len(words := line.split()) > 4 for place in (2, 3)}
    contents = _git(root, "cat-file", "--batch", given=b"".join(blob + b"\n" for blob in sorted(blobs)))
    return {found.decode() for found in _HASH.findall(contents)}


def _git(root: Path, *arguments: str, given: bytes = b"") -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, input=given, capture_output=True, check=True).stdout
