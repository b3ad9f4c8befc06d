"""What several test files share."""

import os
import re

import pytest

from tests.import_closure import ROOT
from tests.repository import Repository, short_recipe

# Tests compare bits of several runs: beside other work a stage would take fewer threads than alone.
os.environ.setdefault("OMP_NUM_THREADS", "2")


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
