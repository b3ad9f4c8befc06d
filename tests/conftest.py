"""What several test files share."""

import re

import pytest

from tests.import_closure import ROOT
from tests.repository import Repository, short_recipe


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
