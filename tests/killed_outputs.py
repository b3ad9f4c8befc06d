"""Two outputs of a run that dies before each call that changes a folder: both former ones are left, or both new ones.

A program of its own: hundreds of forks of a process that has torch loaded take half a minute.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from ldm.core import stage
from ldm.core.errors import Stopped

PAIR = ("weights", "results")


def written(root: Path) -> dict[str, str]:
    """What each of two outputs holds; each is two files, which must be there together."""
    found = {}
    for name in PAIR:
        if (root / name).exists():
            texts = {(root / name / part).read_text() for part in ("1", "2")}
            assert len(texts) == 1, f"{name} is half of this and half of that"
            found[name] = texts.pop()
    return found


def fill(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    for part in ("1", "2"):
        (folder / part).write_text(text)


def write_pair(root: Path, fails: bool) -> int:
    """Write both outputs; exit code."""
    try:
        with stage.outputs(*(root / name for name in PAIR)) as folders:
            for folder in folders:
                fill(folder, "new")
            if fails:
                raise Stopped("a", "b", "c", "d")
    except Stopped as error:
        return error.exit_code
    return 0


def write_pair_until(kill_at: int, root: Path, fails: bool) -> int:
    """The same in a child that dies before the n-th call that changes a folder."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    num_calls = 0

    def counted(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            nonlocal num_calls
            num_calls += 1
            if num_calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, name, call)

    code = 1
    try:
        for name in ("rename", "mkdir", "unlink", "rmdir"):
            counted(name)
        code = write_pair(root, fails)
    finally:
        os._exit(code)


def kill_everywhere(folder: Path, former: tuple[str, ...]) -> None:
    """Kill a run at each point, and where that left something aside, also the run that repairs it, which itself fails.

    former: outputs that were there before.
    """
    old, new = dict.fromkeys(former, "old"), dict.fromkeys(PAIR, "new")
    root, start = folder / "root", folder / "start"
    codes, seen = list[int](), list[dict[str, str]]()
    while 0 not in codes:
        shutil.rmtree(start, ignore_errors=True)
        start.mkdir()
        for name in former:
            fill(start / name, "old")
        codes.append(write_pair_until(len(codes) + 1, start, fails=False))
        ends = [] if list(start.glob(".*.old")) else [75]
        while not ends or ends[-1] != 75:
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(start, root)
            ends.append(write_pair_until(len(ends) + 1, root, fails=True))
            assert write_pair(root, fails=True) == 75
            assert written(root) in (old, new), (codes, ends)
            assert {entry.name for entry in root.iterdir()} == set(written(root)), "nothing is left over"
        assert set(ends[:-1]) <= {-signal.SIGKILL}
        assert write_pair(start, fails=True) == 75
        seen.append(written(start))
        assert seen[-1] in (old, new) or (not former and seen[-1] == {"weights": "new"}), codes
    assert set(codes[:-1]) == {-signal.SIGKILL} and len(codes) > 6
    assert old in seen and new in seen


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]), tuple(sys.argv[2:]))
