"""What several test files share."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.import_closure import ROOT
from tests.repository import Repository, short_recipe

if TYPE_CHECKING:
    from ldm.tools.pipeline import Pipeline

# Tests compare bits of several runs: beside other work a stage would take fewer threads than alone. Torch reads this
# when it is imported, so nothing above and no fixture's signature imports it.
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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny trained artefacts. A file that needs more in it overrides this fixture by one that adds it."""
    from tests import trained_data

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained_data.make(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(root: Path) -> "Pipeline":
    """The pipeline of `root`."""
    from ldm.tools import pipeline

    return pipeline.Pipeline.load(root)
