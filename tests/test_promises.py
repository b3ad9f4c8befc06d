"""Every row of the table of promises, tried. The row of stops and kills has its own tests, and `make reliability`."""

from pathlib import Path

import pytest
import torch

from ldm.denoiser.training.batches import LatentBatches
from ldm.denoiser.training.inputs import load_inputs
from tests import test_training_loop
from tests.promises import PAGE, PROMISES, written
from tests.toy_training import Batches, Toy, params, run_toy
from tests.training_data import unet_params, write_all


def test_the_table_in_the_docs_is_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run python -m tests.promises"
    assert list(PROMISES)[1:3] == ["number of threads", "number of processes, or of accumulation passes"]


def test_nothing_differs(tmp_path: Path) -> None:
    first, again = (run_toy(tmp_path / name, params()) for name in "ab")
    assert test_training_loop.equal(first[0].state_dict(), again[0].state_dict()) and first[1] == again[1]


def test_another_number_of_threads(tmp_path: Path) -> None:
    before, toys = torch.get_num_threads(), list[Toy]()
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        toys.append(run_toy(tmp_path / str(num_threads), params(log_every_steps=1))[0])
    torch.set_num_threads(before)
    assert test_training_loop.largest_difference(toys[0].state_dict(), toys[1].state_dict()) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_number_of_passes(tmp_path: Path, precision: str) -> None:
    """Processes have a test of their own: test_training_loop.test_two_processes_agree_with_one."""
    tolerance = {"fp32": 1e-5, "bf16": 2e-3}[precision]
    changes = {"precision": precision, "log_every_steps": 1}
    histories = [
        run_toy(tmp_path / str(passes), params(num_accumulation_steps=passes, **changes))[1] for passes in (1, 2)
    ]
    losses = [[row["loss"] for row in history.training] for history in histories]
    assert len(losses[0]) == 20 and losses[0] == pytest.approx(losses[1], abs=tolerance)


def test_what_is_drawn_depends_on_nothing_else(tmp_path: Path) -> None:
    """Any cut of the global batch into processes and passes, and any number of threads, gives its rows."""
    write_all(tmp_path)
    folders = [tmp_path / name for name in ("latents", "captions", "embeddings", "autoencoder", "clip")]
    chosen = unet_params()
    batches = LatentBatches(load_inputs(*folders, takes_pooled=False).train, chosen)
    size, before = chosen.training.batch_size, torch.get_num_threads()
    whole = batches(3, slice(0, size))
    for num_parts in (2, 4, 8):
        torch.set_num_threads(1 + num_parts % 3 % 2)
        part = size // num_parts
        parts = [batches(3, slice(first, first + part)) for first in range(0, size, part)]
        assert all(torch.equal(torch.cat([p[name] for p in parts]), whole[name]) for name in whole)
    torch.set_num_threads(before)
    toy = Batches(params())
    assert torch.equal(torch.cat([toy(5, slice(0, 3))["x"], toy(5, slice(3, 8))["x"]]), toy(5, slice(0, 8))["x"])
