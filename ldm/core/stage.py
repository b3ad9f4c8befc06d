"""What every stage needs around its work: exit codes, and output folders that appear as a whole or not at all."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ldm.core import locks, system


def run(main: Callable[[], str]) -> None:
    """Call `main` and print the summary line it returns, on the first process only.

    Errors outside our code end the process with an exit code and a line on stderr, as in `system.run`.
    """
    rank = int(os.environ.get("RANK", "0"))

    def work() -> None:
        summary = main()
        if rank == 0:
            print(summary, flush=True)
            _note_time()
        _leave_process_group()

    code = system.run(work, prefix=f"[process {rank}] " if rank else "")
    if code:
        raise SystemExit(code)


@contextmanager
def output(path: Path) -> Generator[Path]:
    """`outputs` with one folder, written by this process alone."""
    with outputs(path) as (folder,):
        yield folder


@contextmanager
def outputs(
    *paths: Path, is_main: bool = True, wait_for_others: Callable[[], None] = lambda: None
) -> Generator[tuple[Path, ...]]:
    """New folders that replace `paths`, all together, when the block ends without an error.

    Until then, and for good if the block fails, `paths` keep their old content. Nothing is written in place, since an
    output may be a link into DVC's cache. After a kill at any point, either all new folders are in place, or the next
    block of the same `paths` restores all old ones.

    Several processes may write into them (`ldm.compute.process.outputs`). The main one creates and moves the folders;
    `wait_for_others` is called where no process may be ahead.

    Raises:
        MachineError: another process writes the same folder, or the disk is full or broken.
    """
    places = [_Place(path) for path in paths] if is_main else []
    with ExitStack() as locked:
        for place in places:
            locked.enter_context(place.held())
        try:
            _put_back(places)
            for place in places:
                _remove(place.building)
                place.building.mkdir(parents=True)
            wait_for_others()
            yield tuple(_Place(path).building for path in paths)
            wait_for_others()
            _swap(places)
        except BaseException as error:
            for place in places:
                _remove(place.building)
            if isinstance(error, OSError) and error.errno in system.DISK_ERRORS:
                raise system.explain(error, str(paths[0])) from error
            raise
        wait_for_others()


class _Place:
    """The path of an output, and beside it the folder being built, the old one while it is set aside, and the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.building, self.old, self._lock = (path.with_name(f".{path.name}.{s}") for s in ("building", "old", "lock"))

    @property
    def is_there(self) -> bool:
        """Whether anything is at the path, be it a broken link."""
        return os.path.lexists(self.path)

    @property
    def is_aside(self) -> bool:
        """Whether the old content is set aside."""
        return os.path.lexists(self.old)

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold the lock. MachineError: another process does."""
        lock = locks.take(self._lock)
        try:
            yield
        finally:
            with suppress(OSError):  # a leftover lock file does no harm
                self._lock.unlink()
            locks.release(lock)


def _swap(places: Sequence[_Place]) -> None:
    """Set the old folders aside and move the new ones into place."""
    try:
        for place in places:
            if place.is_there:
                place.path.rename(place.old)
        # Those that replace nothing come last: after a kill before them a path is missing, and the old ones come back.
        for place in sorted(places, key=lambda place: not place.is_aside):
            place.building.rename(place.path)
    finally:
        _put_back(places)


def _put_back(places: Sequence[_Place]) -> None:
    """Finish an interrupted swap: if a folder is missing, restore what was set aside, else remove that."""
    aside = [place for place in places if place.is_aside]
    if not all(place.is_there for place in places):
        # The missing ones come last: after a kill before them, the next call gets here again.
        for place in sorted(aside, key=lambda place: not place.is_there):
            if place.is_there:
                _remove(place.building)
                place.path.rename(place.building)
            place.old.rename(place.path)
        return
    for place in aside:
        # Renamed first: a kill during the removal must not leave half a folder under the name of the old one.
        _remove(place.building)
        place.old.rename(place.building)
        _remove(place.building)


def _note_time() -> None:
    """Append this stage's wall time to the file that LDM_TIMES names, if any. No output holds one: it would change."""
    if "LDM_TIMES" in os.environ:
        import psutil

        seconds = time.time() - psutil.Process().create_time()
        with Path(os.environ["LDM_TIMES"]).open("a", encoding="utf-8") as file:
            file.write(f"{Path(sys.argv[0]).stem:20} {seconds:8.1f}\n")


def _leave_process_group() -> None:
    """Close torch's process group, if any: torch warns about one that is left open."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
