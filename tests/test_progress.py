"""What a log gets of long work, and what a terminal gets."""

import io
import sys
from pathlib import Path

import pytest

from ldm.core import progress
from ldm.core.errors import Stopped
from tests.toy_training import Batches, params, run_toy


class Clock:
    """A time that a test moves on."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_after_10_seconds_then_every_30_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in progress.each(range(20), "sample", "shard", 20):
        clock.now += 4
    assert capsys.readouterr().err.splitlines() == [
        "sample: 3/20 shards, 4.0 s per shard, 1 min 8 s left",
        "sample: 11/20 shards, 4.0 s per shard, 36 s left",
        "sample: 19/20 shards, 4.0 s per shard, 4 s left",
        "sample: 20/20 shards, in 1 min 20 s",
    ]


def test_a_line_has_the_latest_numbers_and_counts_what_was_done_before_apart(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.Progress("unet", "step", 5000, done=1000) as bar:
        for loss in (0.25, 0.125):
            bar.note(loss=loss)
            for _ in range(160):
                clock.now += 0.0625
                bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "unet: 1160/5000 steps, 16.0 steps/s, 4 min 0 s left, loss 0.25",
        "unet: 1320/5000 steps, in 20 s, loss 0.125",
    ]


def test_work_of_unknown_size_and_hours(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.each(iter("ab"), "prepare", "sample", None)) == ["a", "b"]
    for _ in progress.each(iter("ab"), "prepare", "sample", None):
        clock.now += 3900
    assert capsys.readouterr().err.splitlines() == [
        "prepare: 1 sample, 3900.0 s per sample",
        "prepare: 2 samples, 3900.0 s per sample",
        "prepare: 2 samples, in 2 h 10 min",
    ]


def test_other_processes_unfinished_work_and_no_work_say_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in progress.each(range(3), "sample", "shard", 3, is_shown=False):
        clock.now += 60
    list(progress.each([], "sample", "shard", 0))
    with pytest.raises(Stopped), progress.Progress("unet", "step", 10) as bar:
        bar.advance()
        raise Stopped("unet", "stopped", "10 steps", "run it again")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.Progress("unet", "step", 2) as bar:
        bar.note(loss=0.5)
        bar.advance()
        bar.advance()
    assert "\runet: 100%" in terminal.getvalue() and "2/2" in terminal.getvalue() and "loss=0.5" in terminal.getvalue()


def test_the_log_of_a_training_has_lines_with_its_losses_and_no_carriage_return(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_TO_FIRST_LINE", 0)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    chosen = params(num_steps=8, log_every_steps=3)
    with pytest.raises(Stopped):
        run_toy(tmp_path, chosen, batches=Batches(chosen), kill_at=3)
    _, history = run_toy(tmp_path, chosen)
    text = capsys.readouterr().err
    assert "\r" not in text
    lines = [line for line in text.splitlines() if line.startswith("toy: ")]
    counted = [line.split(",")[0] for line in lines]
    assert counted == [f"toy: {step}/8 steps" for step in (1, 2, 3, 4, 5, 6, 7, 8, 8)]
    losses = {row["step"]: f"loss {row['loss']:.4g}" for row in history.training}
    shown = [line.rsplit(", ")[-1] for line in lines]
    assert shown[2] == losses[3] and shown[5:] == [losses[6], losses[6], losses[8], losses[8]]


def test_nouns_have_the_number_of_what_they_count(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert [progress.count(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    for total in (1, 4):
        for _ in progress.each(range(total), "check", "batch", total):
            clock.now += 60 / total
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if " in 1 min" in line] == [
        "check: 1/1 batch",
        "check: 4/4 batches",
    ]
