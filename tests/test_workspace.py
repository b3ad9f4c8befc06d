from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldm.core import workspace
from ldm.core.errors import UserError
from ldm.corpora import folder, parquet, webdataset
from ldm.corpora.files import Files
from ldm.denoiser.training.start import load_weights
from ldm.evaluation import spaces
from ldm.evaluation.params import InceptionSpaceParams
from ldm.text.training.pretrained import from_file, from_folder
from tests.corpora import CAPTIONS, FOLDER, PIXELS, WEBDATASET

CORPUS = SimpleNamespace(directory=".", pixels=PIXELS, captions=CAPTIONS, val_fraction=0.3, seed=0)


def _empty(path: Path) -> Files:
    path.mkdir(parents=True, exist_ok=True)
    return Files(path)


READERS: dict[str, Callable[[Any], Any]] = {
    "folder": lambda path: folder.units(FOLDER, 16, Files.below(path, ".")),
    "no images": lambda path: folder.units(FOLDER, 16, _empty(path)),
    "no tables": lambda path: parquet.units(CORPUS, 16, _empty(path)),
    "webdataset": lambda path: webdataset.units(WEBDATASET, 16, Files.below(path, ".")),
    "clip file": lambda path: from_file(SimpleNamespace(path=str(path))),
    "clip folder": lambda path: from_folder(SimpleNamespace(path=str(path))),
    "unet": lambda path: load_weights(None, SimpleNamespace(path=str(path)), None, None),
    "inception": lambda path: spaces.build(
        InceptionSpaceParams(kind="inception", weights=str(path)), torch.device("cpu")
    ),
}
"""Whatever reads what users bring."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository, with nothing set and its root as the working folder."""
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.delenv("LDM_RUNS", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def copy(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy of it that DVC makes for an experiment, as the working folder of a stage that DVC started there."""
    copy = repository / ".dvc/tmp/exps/standalone/tmpabc"
    copy.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(repository))
    monkeypatch.chdir(copy)
    return copy


def test_a_repository_keeps_its_states_itself(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workspace.owner() is None
    assert workspace.runs("runs") == Path("runs")
    monkeypatch.setenv("DVC_ROOT", str(repository))
    assert workspace.owner() is None and workspace.runs("runs") == Path("runs")


def test_a_copy_keeps_its_states_in_the_repository_it_was_made_from(repository: Path, copy: Path) -> None:
    assert workspace.owner() == repository
    assert workspace.runs("scratch/runs") == repository / "scratch/runs"


@pytest.mark.parametrize("link", [".dvc/tmp", ".dvc"])
def test_a_link_on_the_way_to_the_copy_makes_no_difference(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, link: str
) -> None:
    (repository / link).parent.mkdir(exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    (repository / link).symlink_to(tmp_path / "elsewhere")
    copy = repository / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(repository))
    monkeypatch.chdir(copy)
    assert workspace.runs("runs") == repository / "runs"


def test_another_repository_is_no_owner(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other/.dvc/tmp/exps").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "other"))
    assert workspace.owner() is None


def test_the_environment_overrules_the_params(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LDM_RUNS", str(tmp_path / "shared"))
    assert workspace.runs("runs") == tmp_path / "shared"
    monkeypatch.setenv("LDM_RUNS", "")
    assert workspace.runs("runs") == Path("runs")


def test_a_relative_root_lies_in_the_owner(repository: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_RUNS", "states")
    assert workspace.runs("runs") == repository / "states"


def test_files_that_stayed_behind_are_named(repository: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path("data/source")
    assert workspace.left_behind(source) == ""
    for root, names in {repository: ("README.md", ".hidden", "b.png", "mine/a.png"), copy: ("README.md",)}.items():
        for name in names:
            (root / source / name).parent.mkdir(parents=True, exist_ok=True)
            (root / source / name).touch()
    line = workspace.left_behind(source)
    assert line.startswith(f"{repository}/data/source/b.png and 1 more did not come along")
    assert "dvc add" in line and "--copy-paths" in line and "\n" not in line
    assert workspace.left_behind(source / "b.png").startswith(f"{repository}/data/source/b.png did not")
    assert workspace.left_behind(source / "README.md") == ""
    workspace.warn_of_left_behind(source / "mine")
    assert capsys.readouterr().err.startswith(f"note: {repository}/data/source/mine/a.png did not come along")


def test_nothing_stays_behind_where_there_is_no_copy(repository: Path) -> None:
    (repository / "data").mkdir()
    assert workspace.left_behind(Path("data")) == workspace.left_behind(Path("missing")) == ""


@pytest.mark.parametrize("reader", READERS)
def test_who_misses_a_file_in_a_copy_says_where_it_is(repository: Path, copy: Path, reader: str) -> None:
    path = Path("data/source")
    with pytest.raises(UserError) as error:
        READERS[reader](path)
    assert str(repository) not in str(error.value), "it is not there either"
    (repository / path).mkdir(parents=True)
    (repository / path / "a.png").touch()
    with pytest.raises(UserError) as error:
        READERS[reader](path)
    assert f"fix: {repository}/data/source/a.png did not come along" in str(error.value)
