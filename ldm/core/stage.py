"""What every stage needs around its work: an exit code, and outputs that appear as a whole."""

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

    What goes wrong outside our code ends the process with an exit code and a line on stderr, as `system.run` says.
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
    """New folders that become `paths`, all together, when the block ends without an error.

    The former content of `paths` stays until then, and stays for good if the block fails. Nothing is written in place,
    since an output may be a link into DVC's cache. After a kill at any point all new folders are there, or all that
    were there before come back when the next block of the same `paths` begins.

    Several processes may write into them (`ldm.compute.process.outputs`): one is the main one, which makes and moves
    the folders, and each waits for the others where one must not be ahead.

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
    """Where an output is, and beside it what is built, what it replaces meanwhile, and who is at work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.building, self.old, self._lock = (path.with_name(f".{path.name}.{s}") for s in ("building", "old", "lock"))

    @property
    def is_there(self) -> bool:
        """Also as a link that leads nowhere."""
        return os.path.lexists(self.path)

    @property
    def is_aside(self) -> bool:
        """Its former content waits for the new one."""
        return os.path.lexists(self.old)

    @contextmanager
    def held(self) -> Generator[None]:
        """MachineError: another process holds it."""
        lock = locks.take(self._lock)
        try:
            yield
        finally:
            with suppress(OSError):  # left over, it does no harm
                self._lock.unlink()
            locks.release(lock)


def _swap(places: Sequence[_Place]) -> None:
    """What was built takes the place of what was there."""
    try:
        for place in places:
            if place.is_there:
                place.path.rename(place.old)
        # Those that replace nothing last: until then a folder is missing, and what lies aside would come back.
        for place in sorted(places, key=lambda place: not place.is_aside):
            place.building.rename(place.path)
    finally:
        _put_back(places)


def _put_back(places: Sequence[_Place]) -> None:
    """End a swap that was cut: if a folder is missing, what lies aside comes back, else it is not needed any more."""
    aside = [place for place in places if place.is_aside]
    if not all(place.is_there for place in places):
        # The missing ones last: until then a cut of this leads here once more.
        for place in sorted(aside, key=lambda place: not place.is_there):
            if place.is_there:
                _remove(place.building)
                place.path.rename(place.building)
            place.old.rename(place.path)
        return
    for place in aside:
        # Under another name first: what lies aside is whole, whatever cuts its removal.
        _remove(place.building)
        place.old.rename(place.building)
        _remove(place.building)


def _note_time() -> None:
    """Add this stage's wall time to the file that LDM_TIMES names, if any. No output holds a time: it would change."""
    if "LDM_TIMES" in os.environ:
        import psutil

        seconds = time.time() - psutil.Process().create_time()
        with Path(os.environ["LDM_TIMES"]).open("a", encoding="utf-8") as file:
            file.write(f"{Path(sys.argv[0]).stem:20} {seconds:8.1f}\n")


def _leave_process_group() -> None:
    """Spares the user torch's warning about a process group that was left open; stages without torch have none."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
