"""How fast a training goes. Times depend on the machine, so they are shown while it runs, and kept in no result."""

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import psutil
import torch

from ldm.training.batches import Batch


class Pace:
    """A clock of updates. It stands still while the training validates and saves."""

    def __init__(self, batch_size: int) -> None:
        """batch_size: samples per update, over all processes."""
        self._batch_size = batch_size
        self._start = self._row_start = time.monotonic()
        self._stopped = self._waited = 0.0

    def restart(self) -> None:
        """Start the first row now: what came before were no updates."""
        self._row_start, self._stopped = time.monotonic(), 0.0

    def timed(self, batches: Iterable[Batch]) -> Generator[Batch]:
        """The same batches; the time until each is there is counted as waiting for data."""
        start = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - start
            yield batch
            start = time.monotonic()

    @contextmanager
    def stopped(self) -> Generator[None]:
        """A block that is no part of the updates."""
        start = time.monotonic()
        yield
        self._stopped += time.monotonic() - start

    def row(self, step: int, num_updates: int) -> dict[str, float]:
        """Close a row: how the last `num_updates` updates went, up to `step`.

        samples_per_second: of all processes, without validations and saves. data_wait: share of that time, from 0 to 1,
        in which this process waited for its batches. memory_gb: most that was allocated on the GPU so far, else what
        the process holds now. seconds: since the training started or went on, validations and saves included.
        """
        now = time.monotonic()
        seconds = max(now - self._row_start - self._stopped, 1e-9)
        rate, waited = num_updates * self._batch_size / seconds, self._waited / seconds
        self._row_start, self._stopped, self._waited = now, 0.0, 0.0
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
        speeds = {"samples_per_second": rate, "data_wait": waited, "memory_gb": memory / 1e9}
        return {"step": step, **speeds, "seconds": now - self._start}
