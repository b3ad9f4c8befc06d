"""Two developers share results through a DVC remote, on loopback: a folder, and S3 as moto serves it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from ldm import verify
from tests.repository import Repository, setting

STRONGER = {"check", "sample", "evaluate"}
AddRemote = Callable[[Repository], None]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server that speaks S3; credentials stand in the environment only."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import boto3

    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="team")
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def add_remote(request: pytest.FixtureRequest, tmp_path: Path) -> AddRemote:
    """Tells a repository of the team's remote."""
    if request.param == "folder":
        return lambda repository: _add(repository, str(tmp_path / "remote"))
    endpoint = request.getfixturevalue("s3")

    def add(repository: Repository) -> None:
        _add(repository, "s3://team/results")
        repository.run("dvc", "remote", "modify", "team", "endpointurl", endpoint)

    return add


def _add(repository: Repository, url: str) -> None:
    repository.run("dvc", "remote", "add", "--default", "team", url)
    repository.run("dvc", "remote", "modify", "team", "verify", "true")


def clone_of(origin: Path, path: Path) -> Repository:
    repository = Repository.at(path)
    path.mkdir()
    repository.run("git", "clone", "--quiet", str(origin), ".")
    repository.run("git", "config", "user.name", path.name)
    repository.run("git", "config", "user.email", f"{path.name}@example.org")
    return repository


def value_of(repository: Repository, name: str) -> object:
    (shown,) = json.loads(repository.run("dvc", "metrics", "show", "--json")).values()
    return next(file["data"][name] for file in shown["data"].values() if name in file["data"])


def test_two_developers_share_results_and_experiments(
    repository: Repository, tmp_path: Path, add_remote: AddRemote
) -> None:
    first = Repository.at(tmp_path / "first")
    shutil.copytree(repository.root, first.root, symlinks=True)
    origin = tmp_path / "origin.git"
    first.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(origin))
    first.run("git", "remote", "add", "origin", str(origin))
    add_remote(first)
    first.repro()
    first.commit()
    first.run("git", "push", "--quiet", "origin", "main")
    first.run("dvc", "push")
    assert "secret" not in (first.root / ".dvc/config").read_text()

    second = clone_of(origin, tmp_path / "second")
    said = second.run("dvc", "repro", "--dry", "--allow-missing")
    assert "Running stage" not in said, "CI sees without any data that dvc.lock is fresh"
    second.run("dvc", "pull")
    assert second.repro() == set()
    assert verify.local(second.root).problems == verify.remote(None, second.root).problems == []
    params = second.root / "params.yaml"
    params.write_text(setting(sample__guidance_scale=2)(params.read_text()))
    assert second.repro() == STRONGER
    second.commit()
    second.run("git", "push", "--quiet", "origin", "main")
    second.run("dvc", "push")

    first.run("git", "pull", "--quiet", "origin", "main")
    first.run("dvc", "pull")
    assert first.repro() == set()
    name = "own_clip_score_margin_seen"
    assert value_of(first, name) == value_of(second, name)
    assert verify.local(first.root).problems == []
    if "s3://" in (first.root / ".dvc/config").read_text():
        share_an_experiment(first, second)


def share_an_experiment(first: Repository, second: Repository) -> None:
    name = "own_clip_score_margin_seen"
    second.run("dvc", "exp", "run", "--set-param", "sample.guidance_scale=2.5", "--name", "stronger")
    there = value_of(second, name)
    second.run("dvc", "exp", "push", "origin", "stronger")
    first.run("dvc", "exp", "pull", "origin", "stronger")
    first.run("dvc", "exp", "apply", "stronger")
    assert value_of(first, name) == there
    assert first.repro() == set()
