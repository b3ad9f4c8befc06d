"""One process of a launch: its share of the work, what it waits for, and what its threads do beforehand."""

import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from ldm.compute import launcher, ranks
from ldm.core import hashes, stage
from ldm.core.errors import IntegrityError
from ldm.core.progress import each

T = TypeVar("T")
R = TypeVar("R")


def join(**settings: Any) -> Accelerator:
    """Join the other processes of this launch. settings: those of accelerate's Accelerator."""
    # Gradients lie in the memory that is exchanged, not beside it.
    gradients = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    group = InitProcessGroupKwargs(timeout=ranks.STEP_WAIT)
    with launcher.whole_models():
        accelerator = Accelerator(kwargs_handlers=[group, gradients], **settings)
    ranks.wait()  # creates the group with the long timeout, while all processes are here
    return accelerator


@contextmanager
def main_first(accelerator: Accelerator) -> Generator[None]:
    """A block that the main process goes through before the others: what it leaves on the disk, they find there."""
    if not accelerator.is_main_process:
        ranks.wait()
    yield
    if accelerator.is_main_process:
        ranks.wait()


@contextmanager
def output(path: Path, accelerator: Accelerator) -> Generator[Path]:
    """`outputs` with one folder."""
    with outputs(accelerator, path) as (folder,):
        yield folder


@contextmanager
def outputs(accelerator: Accelerator, *paths: Path) -> Generator[tuple[Path, ...]]:
    """New folders that every process of the launch may write into, as `ldm.core.stage.outputs` makes them."""
    with stage.outputs(*paths, is_main=accelerator.is_main_process, wait_for_others=ranks.wait) as folders:
        yield folders


def share_of(items: Sequence[T], accelerator: Accelerator) -> Sequence[T]:
    """What this process does of some work: every `num_processes`-th item."""
    return items[accelerator.process_index :: accelerator.num_processes]


def equal_shares(items: Sequence[T], accelerator: Accelerator) -> Iterator[tuple[T, bool]]:
    """What this process does of some work in which all take part, as with a network that is split over them: as many
    items as every other one, and whether each counts, since the last ones may be those of others again."""
    for first in range(0, len(items), accelerator.num_processes):
        number = first + accelerator.process_index
        yield items[number % len(items)], number < len(items)


def check_files(files: Sequence[tuple[Path, str]], accelerator: Accelerator) -> None:
    """Hash files that a long run will read, so that it does not find damage halfway. What this machine has hashed
    before is passed over, and its processes share the rest.

    files: paths with their SHA-256. IntegrityError on every process: some are missing or damaged.
    """
    hosts = ranks.gather(socket.gethostname())
    here = [rank for rank, host in enumerate(hosts) if host == hosts[accelerator.process_index]]
    mine = files[here.index(accelerator.process_index) :: len(here)]
    found: list[tuple[str, ...]] = []
    for path, sha256 in each(mine, "check", "file", len(mine), is_shown=accelerator.is_main_process):
        try:
            hashes.check_once(path, sha256)
        except IntegrityError as error:
            found.append(error.args)
    if problems := [problem for each_found in ranks.gather(found) for problem in each_found]:
        raise IntegrityError.many([IntegrityError(*problem) for problem in problems])


def ahead(compute: Callable[[T], R], items: Iterable[T], *, num_results: int, num_threads: int = 1) -> Generator[R]:
    """`compute` of every item, in order; threads compute up to `num_results` of them before they are asked for, 0 =
    none.

    An error is raised in the place of its result. Close the generator to end the threads, which finish what they have
    begun.
    """
    if num_results == 0:
        yield from map(compute, items)
        return
    remaining = iter(items)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="ahead")
    try:
        coming = deque(pool.submit(compute, item) for item in islice(remaining, num_results))
        while coming:
            result = coming.popleft().result()
            coming.extend(pool.submit(compute, item) for item in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
