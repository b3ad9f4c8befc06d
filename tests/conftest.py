"""What several test files share."""

import fcntl
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.import_closure import ROOT
from tests.repository import Repository, short_recipe, traces_of

if TYPE_CHECKING:
    from ldm.tools.pipeline import Pipeline

# Tests compare bits of several runs: beside other work a stage would take fewer threads than alone. And two workers
# share two cores. Torch reads this when it is imported, so nothing above and no fixture's signature imports it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests hash is none of the user's business.
_CACHE = tempfile.TemporaryDirectory(prefix="ldm-cache-")
os.environ["LDM_CACHE"] = _CACHE.name
# DVC would start a process for it after every command.
os.environ["DVC_NO_ANALYTICS"] = "1"


# Workers that take one file after the other end at about the same time if the longest come first. Many wait for the
# pipeline that the first of them runs, so the second does something else meanwhile.
LONGEST = ("test_pipeline", "test_stages_training", "test_reliability", "test_benchmarks", "test_team", "test_verify")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of LONGEST, then all others."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests with the mark `gpu` run where torch finds one."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def repository(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The pipeline after one `dvc repro` of everything, traced. All workers share it: a test that changes it takes a
    copy."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):
        folder = folder.parent  # it holds the folders of all workers
    whole = folder / "repository.whole"
    with (folder / "repository.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            _run_pipeline(folder / "repository")
            whole.touch()
    return Repository.at(folder / "repository")


def _run_pipeline(root: Path) -> None:
    root.mkdir()  # there already if it failed on another worker, which says why
    repository = Repository(root)
    params = root / "params.yaml"
    params.write_text(short_recipe()(params.read_text()))
    repository.commit()
    stages = re.findall(r"^  (\w+):\n    desc", (ROOT / "dvc.yaml").read_text(), flags=re.MULTILINE)
    traces = traces_of(repository)
    traces.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests/tracing"), prepend=os.pathsep)
        patch.setenv("LDM_TRACE", str(traces))
        assert repository.repro() == set(stages)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny trained artefacts. A file that needs more in it overrides this fixture by one that adds it."""
    from tests import trained_data

    folder = tmp_path_factory.mktemp("trained")
    trained_data.make(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(root: Path) -> "Pipeline":
    """The pipeline of `root`."""
    from ldm.tools import pipeline

    return pipeline.Pipeline.load(root)
