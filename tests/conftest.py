"""What every test needs: no trace of the stages that earlier tests started in this process."""

import os
import re
from collections.abc import Iterator

import pytest

from tests.import_closure import ROOT
from tests.repository import Repository, short_recipe

SET_BY_STAGES = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


@pytest.fixture(autouse=True)
def launcher_environment() -> Iterator[None]:
    """`stage.start` hands the params' accumulation to accelerate by the environment, which outlives the test."""
    before = os.environ.pop(SET_BY_STAGES, None)
    yield
    os.environ.pop(SET_BY_STAGES, None)
    if before is not None:
        os.environ[SET_BY_STAGES] = before


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The pipeline after one `dvc repro` of everything."""
    repository = Repository(tmp_path_factory.mktemp("repository"))
    params = repository.root / "params.yaml"
    params.write_text(short_recipe()(params.read_text()))
    repository.commit()
    stages = re.findall(r"^  (\w+):\n    desc", (ROOT / "dvc.yaml").read_text(), flags=re.MULTILINE)
    assert repository.repro() == set(stages)
    return repository
