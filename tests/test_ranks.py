"""What two processes say to each other, and that they end when they do not agree or one is gone; on real processes."""

import os
import random
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState

from ldm.compute import devices, ranks
from ldm.compute.state import Run
from ldm.core.errors import MachineError
from ldm.training.live import Live
from ldm.training.trackers import Trackers
from tests.forked import run_two
from tests.reliability.disagreements import KINDS
from tests.test_cores import MACHINE
from tests.toy_training import accelerator, averages, params, run_toy

_SHORT = timedelta(seconds=4)
"""The wait for an exchange within a step, shortened."""


def test_one_process_agrees_with_itself():
    assert ranks.count() == 1
    assert ranks.gather({"a": [1]}) == [{"a": [1]}] and ranks.from_main(3) == 3
    ranks.agree({"a": 1})
    ranks.wait()


def test_two_processes_exchange_json_of_any_length(tmp_path: Path):
    def work(rank: int) -> None:
        accelerator(params())
        assert ranks.count() == 2
        value = {"rank": rank, "text": "ä" * 1000 * rank, "none": None}
        assert ranks.gather(value) == [{"rank": r, "text": "ä" * 1000 * r, "none": None} for r in range(2)]
        assert ranks.from_main(["from", rank]) == ["from", 0]
        ranks.agree({"same": 1.5})
        ranks.wait()

    assert [each.code for each in run_two(tmp_path, work)] == [0, 0]


def test_a_disagreement_names_keys_values_and_processes(tmp_path: Path):
    def work(rank: int) -> None:
        accelerator(params())
        ranks.agree({"same": 1, "rate": 0.1 * (rank + 1), **({"only": "here"} if rank else {})})

    for each in run_two(tmp_path, work):
        assert each.code == 4
        assert "rate is 0.1 on process 0, 0.2 on process 1; only is null on process 0, here on process 1" in each.said
        assert "same" not in each.said.split("; expected")[0]


def test_the_others_wait_for_what_the_main_process_does_alone(tmp_path: Path):
    """It tells trackers and writes averages, which may take longer than an exchange within a step."""
    chosen = params(num_steps=4)

    def slowed(work: Callable[..., Any]) -> Callable[..., Any]:
        """The first call takes longer."""
        delays = iter([1.25 * _SHORT.total_seconds()])

        def slow(*args: Any, **options: Any) -> Any:
            time.sleep(next(delays, 0.0))
            return work(*args, **options)

        return slow

    def work(rank: int) -> None:
        PartialState(cpu=True, timeout=_SHORT)
        if rank == 0:
            for owner, name in ((Trackers, "__init__"), (Live, "show"), (Run, "keep")):
                setattr(owner, name, slowed(getattr(owner, name)))
        run_toy(tmp_path, chosen, kept=averages(every_steps=4))

    for each in run_two(tmp_path / "said", work):
        assert each.code == 0, each.said


def test_processes_that_ask_for_other_numbers_of_threads_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on two hosts with params files of their own."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def work(rank: int) -> None:
        devices.start(MACHINE.model_copy(update={"threads": (2, None)[rank]}))

    for each in run_two(tmp_path, work):
        assert each.code == 4
        assert "machine.threads, or else OMP_NUM_THREADS, is 2 on process 0, null on process 1" in each.said


def test_a_wait_ends_when_the_other_process_ends(tmp_path: Path):
    def work(rank: int) -> None:
        accelerator(params())
        ranks.wait()
        if rank == 1:
            os._exit(9)
        ranks.wait()

    started = time.monotonic()
    first, second = run_two(tmp_path, work)
    assert (first.code, second.code) == (5, 9) and time.monotonic() - started < 30
    assert re.search("another one ended or is out of reach .*closed|reset", first.said)
    said = [line for line in first.said.splitlines() if not line.startswith("[Gloo]")]  # torch 2.10 says it connects
    assert len(said) == 2, "a line and its fix, no traceback"


def test_only_errors_of_the_exchange_are_taken_for_a_lost_process():
    with pytest.raises(RuntimeError, match="our own"), ranks.together():
        raise RuntimeError("our own")
    with pytest.raises(MachineError, match="out of reach"), ranks.together():
        raise torch.distributed.DistBackendError("NCCL watchdog")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_a_checksum_sees_every_bit_and_place(dtype: torch.dtype):
    tensor = torch.arange(-3, 9).reshape(3, 4).to(dtype)
    found = ranks.checksums({"a": tensor, "b": tensor.clone(), "scalar": tensor[0, 0]})
    assert found["a"] == found["b"] != found["scalar"]
    swapped, changed = tensor.clone(), tensor.clone()
    swapped[0, 0], swapped[2, 3] = tensor[2, 2] if dtype == torch.bool else tensor[2, 3], tensor[0, 0]
    changed[1, 1] = ~changed[1, 1] if dtype == torch.bool else changed[1, 1] + 1
    if dtype != torch.bool:
        assert ranks.checksums({"a": swapped})["a"] != found["a"]
    assert ranks.checksums({"a": changed})["a"] != found["a"]
    assert ranks.checksums({"a": tensor.flatten()})["a"] != found["a"], "the shape is part of it"


def test_a_checksum_of_many_parts(monkeypatch: pytest.MonkeyPatch):
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole = ranks.checksums({"a": tensor})
    monkeypatch.setattr(ranks, "_CHUNK", 7)
    assert ranks.checksums({"a": tensor}) == whole


@pytest.mark.parametrize("kind", ["state", "params", "order", "weights", "drift"])
def test_processes_that_disagree_go_no_further(tmp_path: Path, kind: str):
    from tests.reliability.disagreements import saved_run

    saved_run(tmp_path / "runs")
    assert KINDS[kind](tmp_path, 1, random.Random(4)) == ""
