"""How fast a training goes, by a clock that the test sets."""

import pytest
import torch

from ldm.training import pace
from ldm.training.pace import Pace


def test_rows_count_updates_without_what_lies_between(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    clock = Pace(batch_size=8)

    def draw(step: int, rows: slice) -> dict[str, torch.Tensor]:
        nonlocal now
        now += 1  # of waiting for each batch
        return {"rows": torch.arange(rows.start, rows.stop) + step}

    batches = clock.timed(draw)
    assert batches(5, slice(2, 4))["rows"].tolist() == [7, 8]
    batches(6, slice(0, 8))
    now += 2  # of computing
    with clock.stopped():
        now += 50  # of a validation
    row = clock.row(10, num_updates=2)
    assert (row["step"], row["samples_per_second"], row["data_wait"], row["seconds"]) == (10, 2 * 8 / 4, 0.5, 54)
    assert row["memory_gb"] > 0
    now += 1
    row = clock.row(11, num_updates=1)
    assert (row["samples_per_second"], row["data_wait"], row["seconds"]) == (8, 0, 55), "of this row alone"
