"""What a browser is told of a drawing, and how often."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ldm.tools.web import answers
from ldm.tools.web.limits import DEFAULTS
from ldm.tools.web.studio import Event, Progress

NUM_STEPS = 500


class Studio:
    """A model whose steps take a time that the clock of the test shows."""

    limits = DEFAULTS

    def __init__(self, seconds_per_step: float, patch: pytest.MonkeyPatch) -> None:
        self._seconds, self._now = seconds_per_step, 100.0
        patch.setattr(answers, "time", SimpleNamespace(monotonic=lambda: self._now))

    def draw(self, *_: Any) -> Iterator[Event]:
        for step in range(NUM_STEPS):
            yield Progress(step + 1, NUM_STEPS)
            self._now += self._seconds


@pytest.mark.parametrize(("seconds_per_step", "num_told"), [(1 / 1024, 5), (1 / 16, 250), (1.0, NUM_STEPS)])
def test_steps_are_told_ten_times_a_second_at_most(
    seconds_per_step: float, num_told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = Studio(seconds_per_step, monkeypatch)
    nothing: Any = None
    values = {"prompt": "a star", "num_images": 1}
    drawn = answers.Answers(model, nothing, nothing, []).draw(answers.GENERATE, [], values, "one", [])
    found = [status for status, _ in drawn]
    assert len(found) == num_told and "Step 1 of 500" in found[0]
