"""Which repository a stage works for: `dvc exp run --temp` and `--queue` run in a copy that DVC deletes afterwards.

Resumable state must outlive the copy, so it is kept in the repository that was copied. Of the user's files, the copy
has only those that git or DVC tracks.
"""

import os
import sys
from pathlib import Path

STATES = f"step-{'[0-9]' * 9}"
"""Pattern of the names of saved states in a run directory."""
_COPIES = ".dvc/tmp/exps"


def owner() -> Path | None:
    """Root of the repository that the working folder is DVC's temporary copy of, or None if it is not such a copy.

    DVC names it in the environment variable DVC_ROOT. The variable alone proves nothing: a stage of another repository
    may have started this process.
    """
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    return root if (root / _COPIES).resolve() in Path.cwd().parents else None


def runs(path: str) -> Path:
    """Root of resumable state: the environment variable LDM_RUNS if it is set, else `path`; both relative to the owner.

    So copies of a repository, and repositories with the same LDM_RUNS, continue from each other's states.
    """
    return (owner() or Path()) / (os.environ.get("LDM_RUNS") or path)


def left_behind(path: Path) -> str:
    """One line about files at `path` that the owner has and this copy lacks; empty if there are none."""
    root = owner()
    if root is None or not (missing := sorted(_files(root / path) - _files(path))):
        return ""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return (
        f"{root / path / missing[0]}{more} did not come along into this temporary copy: `dvc add` them "
        "(or the folder they are in), `git add` the .dvc file and start the experiment again; or name what is not "
        "tracked to `dvc exp run --copy-paths`"
    )


def warn_of_left_behind(path: Path) -> None:
    """Print that line, if any, on stderr. It is not an error: the files here may be all that this commit has."""
    if line := left_behind(path):
        print(f"note: {line}", file=sys.stderr, flush=True)


def _files(path: Path) -> set[Path]:
    """All files at or below `path` that are not hidden, relative to it."""
    if not path.is_dir():
        return {Path()} if path.exists() else set()
    walk = ((Path(folder), names) for folder, _, names in os.walk(path))
    return {(folder / name).relative_to(path) for folder, names in walk for name in names if not name.startswith(".")}
