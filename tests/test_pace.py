"""How fast a training goes, by a clock that the test sets."""

from collections.abc import Iterator

import pytest
import torch

from ldm.training import pace
from ldm.training.pace import Pace


def test_rows_count_updates_without_what_lies_between(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    clock = Pace(batch_size=8)
    now += 7  # of preparations
    clock.restart()

    def drawn() -> Iterator[dict[str, torch.Tensor]]:
        nonlocal now
        for step in range(9):
            now += 1  # of waiting for each batch
            yield {"step": torch.tensor(step)}

    batches = clock.timed(drawn())
    assert [next(batches)["step"].item() for _ in range(2)] == [0, 1]
    now += 2  # of computing
    with clock.stopped():
        now += 50  # of a validation
    row = clock.row(10, num_updates=2)
    assert (row["step"], row["samples_per_second"], row["data_wait"], row["seconds"]) == (10, 2 * 8 / 4, 0.5, 61)
    assert row["memory_gb"] > 0
    now += 1
    row = clock.row(11, num_updates=1)
    assert (row["samples_per_second"], row["data_wait"], row["seconds"]) == (8, 0, 62), "of this row alone"
