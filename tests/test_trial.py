"""`make try`: a picture from a model that a remote serves by HTTP."""

import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ldm.core.images import decode_png
from ldm.tools import cli, trial
from tests.import_closure import ROOT
from tests.repository import Repository


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which it can be read."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def clone(repository: Repository, tmp_path: Path) -> Repository:
    """What a newcomer has: the files of git, and no result."""
    found = Repository.at(tmp_path / "clone")
    found.root.mkdir()
    found.run("git", "clone", "--quiet", str(repository.root), ".")
    shutil.copy2(repository.root / "dvc.lock", found.root)
    return found


def test_the_model_comes_from_a_remote_that_can_only_be_read(
    repository: Repository, clone: Repository, served: tuple[Path, str]
) -> None:
    folder, address = served
    shutil.copytree(repository.root / ".dvc/cache", folder, dirs_exist_ok=True)
    clone.run("dvc", "remote", "add", "--default", "public", address)
    said = clone.run("python", "-m", "ldm.tools.trial", "a red star")
    assert "data/model: from the DVC remote public" in said
    assert f"{trial.OUTPUT}/0000.png  a red star" in said
    assert decode_png((clone.root / trial.OUTPUT / "0000.png").read_bytes()).shape[2] == 3
    assert not (clone.root / "data/images").exists(), "the model alone"
    assert str(trial.OUTPUT) not in clone.run("git", "status", "--porcelain", "--untracked-files=all")
    shutil.rmtree(clone.root / "data/model")
    shutil.rmtree(clone.root / ".dvc/cache")
    shutil.rmtree(folder / "files")
    said = clone.run("python", "-m", "ldm.tools.trial", check=False)
    assert "data/model: `dvc pull` did not bring it from the remote public" in said and "fix: see above" in said


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "paths.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_remote_it_says_how_long_a_training_takes(here: Path, capsys) -> None:
    assert trial.main([]) == 4
    said = capsys.readouterr().err
    time = trial._time(ROOT)
    assert time.endswith("on two cores")
    assert f"`make demo` trains one ({time}); or name a remote: dvc remote add" in said
    (here / "params.yaml").write_text("a: 1\n")
    assert "does not say" in trial._time(here) and trial.example(here) is None


def test_a_model_that_is_there_is_drawn_with_at_once(here: Path, monkeypatch, capsys) -> None:
    (here / "data/model").mkdir(parents=True)
    (here / "data/model/passport.json").write_text("{}")
    calls: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda arguments: calls.append(arguments) or 0)
    assert trial.main([]) == 0 and trial.main(["a blue star"]) == 0 and trial.main(["--", "-red"]) == 0
    prompts = [trial.example(ROOT), "a blue star", "-red"]
    assert calls == [["generate", "--model", "data/model", "--output", "outputs/try", "--", p] for p in prompts]
    assert [cli.parser().parse_args(call).prompts for call in calls] == [[p] for p in prompts]
    assert "All that it can do: ldm" in capsys.readouterr().out
    monkeypatch.setattr(cli, "main", lambda arguments: 5)
    with pytest.raises(SystemExit) as error:
        trial.main([])
    assert error.value.code == 5


@pytest.mark.parametrize("value", ["7", "[red]", "true", "", "{a: b}"])
def test_an_example_that_is_no_text_is_none(here: Path, value: str) -> None:
    text = re.sub(r"^    prompt: .*", f"    prompt: {value}", (here / "params.yaml").read_text(), flags=re.MULTILINE)
    (here / "params.yaml").write_text(text)
    assert trial.example(here) is None


def test_the_default_remote_is_that_of_dvcs_config(tmp_path: Path) -> None:
    assert trial.remote(tmp_path) is None
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n")
    assert trial.remote(tmp_path) is None
    (tmp_path / ".dvc/config.local").write_text("[core]\n    remote = mine\n")
    assert trial.remote(tmp_path) == "mine"
    (tmp_path / ".dvc/config").write_text("no config\n")
    assert trial.remote(tmp_path) is None
