"""What every test needs: no trace of the stages that earlier tests started in this process."""

import os
from collections.abc import Iterator

import pytest

SET_BY_STAGES = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


@pytest.fixture(autouse=True)
def launcher_environment() -> Iterator[None]:
    """`stage.start` hands the params' accumulation to accelerate by the environment, which outlives the test."""
    before = os.environ.pop(SET_BY_STAGES, None)
    yield
    os.environ.pop(SET_BY_STAGES, None)
    if before is not None:
        os.environ[SET_BY_STAGES] = before
