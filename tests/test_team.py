"""Two developers share results, and what they bring, through a DVC remote on loopback: a folder, and S3 as moto serves
it. Experiments that DVC runs in a copy of the repository find what was brought, too."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from ldm.tools import verify
from ldm.tools.recipe import Recipe
from tests.import_closure import ROOT
from tests.repository import Repository, setting

STRONGER = {"check", "sample", "evaluate", "model"}


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


def test_two_developers_share_results_and_experiments(repository: Repository, tmp_path: Path, s3: str) -> None:
    first = repository.copy(tmp_path / "first")
    origin = tmp_path / "origin.git"
    first.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(origin))
    first.run("git", "remote", "add", "origin", str(origin))
    _add(first, "s3://team/results")
    first.run("dvc", "remote", "modify", "team", "endpointurl", s3)
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
    said = second.run("dvc", "exp", "run", "--set-param", "sample.drawing.guidance_scale=2", "--name", "stronger")
    assert set(re.findall(r"Running stage '(\w+)'", said)) == STRONGER
    says_what_changed(second, "stronger", before=3, now=2)
    second.run("dvc", "exp", "push", "origin", "stronger")

    name = "own_clip_score_margin_seen"
    before = value_of(first, name)
    first.run("dvc", "exp", "pull", "origin", "stronger")
    first.run("dvc", "exp", "apply", "stronger")
    assert value_of(first, name) == value_of(second, name) != before
    assert first.repro() == set()
    assert verify.local(first.root).problems == []
    first.commit()
    first.run("git", "push", "--quiet", "origin", "main")
    first.run("dvc", "push")
    draw_with_the_model_alone(clone_of(origin, tmp_path / "third"))


def says_what_changed(repository: Repository, name: str, before: int, now: int) -> None:
    """By DVC's tables, for an experiment with another guidance scale."""
    of_experiment = (name, "--json")
    (shown,) = json.loads(repository.run("dvc", "params", "diff", "HEAD", *of_experiment)).values()
    assert shown == {"sample.drawing.guidance_scale": {"old": before, "new": now, "diff": now - before}}
    assert name in repository.run("dvc", "exp", "show", "--csv")
    diff = json.loads(repository.run("dvc", "metrics", "diff", "HEAD", *of_experiment))
    assert any(change["old"] != change["new"] for change in diff["data/evaluation/metrics.json"].values())
    plots = json.loads(repository.run("dvc", "plots", "diff", "HEAD", *of_experiment))["data"]
    assert {plot["revisions"][0] for plot in plots["data/samples/grid.png"]} == {"HEAD", name}


def draw_with_the_model_alone(third: Repository) -> None:
    third.run("dvc", "pull", "data/model")
    there = {path.name for path in (third.root / "data").iterdir() if path.is_dir()}
    assert there == {"source", "models", "model"}, "no data, no embeddings, no training"
    third.run("python", "-m", "ldm.tools.cli", "generate", "a red star", "--model", "data/model", "--output", "out")
    assert (third.root / "out/0000.png").is_file()


NUM_OWN = 24


@pytest.fixture(scope="module")
def own(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The finished repository with images and weights of one's own, added as the READMEs of data/ say."""
    own = repository.copy(tmp_path_factory.mktemp("own") / "first")
    images = own.root / "data/source/mine"
    images.mkdir()
    for number in range(NUM_OWN):
        Image.new("RGB", (64, 64), (10 * number, 90, 200)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"picture {number}\n")
    shutil.copytree(own.root / "data/unet", own.root / "data/models/unet/mine")
    own.run("dvc", "add", "data/source/mine", "data/models/unet/mine")
    own.repro("train_unet")
    own.commit()
    return own


def of_own_images(text: str) -> str:
    """Params for whatever lies in data/source."""
    folder = Recipe("folder", ROOT).data["prepare"]["corpus"]
    return setting(prepare__corpus={**folder, "val_fraction": 0.3}, prepare__num_examples=4)(text)


def num_prepared(said: str) -> int:
    """Samples that `prepare` says it has taken; all of them, or this is no number."""
    counts = re.search(r"prepare: (\d+) train, (\d+) val, 0 reworded, 0 unseen, 0 held_out, 0 rejected", said)
    assert counts, said
    return int(counts[1]) + int(counts[2])


def test_own_images_and_weights_travel_by_the_remote(own: Repository, tmp_path: Path) -> None:
    _add(own, str(tmp_path / "remote"))
    own.commit()
    own.run("dvc", "push")
    second = clone_of(own.root, tmp_path / "second")
    second.run("dvc", "pull")
    for name in ("data/source/mine", "data/models/unet/mine"):
        there = {file.name: file.read_bytes() for file in (own.root / name).iterdir()}
        assert {file.name: file.read_bytes() for file in (second.root / name).iterdir()} == there != {}
    assert second.repro() == set()
    with second.changed("params.yaml", of_own_images):
        assert num_prepared(second.run("dvc", "repro", "prepare")) == NUM_OWN


def test_experiments_in_a_copy_find_own_images(own: Repository) -> None:
    with own.changed("params.yaml", of_own_images):
        assert num_prepared(own.run("dvc", "exp", "run", "--temp", "prepare")) == NUM_OWN
        own.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", "prepare.num_examples=3", "prepare")
    own.run("dvc", "exp", "run", "--run-all")
    assert num_prepared(own.run("dvc", "queue", "logs", "queued")) == NUM_OWN


def test_a_stopped_experiment_goes_on_though_its_copy_is_gone(own: Repository) -> None:
    init_from = "{path:data/models/unet/mine,may_differ:[]}"
    values = {"init_from": init_from, "training.num_steps": 40, "training.save_every_steps": 2}
    settings = [word for key, value in values.items() for word in ("-S", f"train_unet.{key}={value}")]
    experiment = ["dvc", "exp", "run", "--temp", "--name", "stopped", *settings, "train_unet"]
    said = own.interrupt(lambda: bool(list(own.root.glob("runs/train_unet/*/step-*"))), *experiment)
    assert "run it again: it goes on from there" in said
    assert not list(own.root.glob(".dvc/tmp/exps/standalone/tmp*")), "the copy is gone"
    going_on = re.search(r"going on from step (\d+) in (\S+)", own.run(*experiment))
    assert going_on and int(going_on[1]) > 0 and Path(going_on[2]).is_relative_to(own.root / "runs")
    assert not list((own.root / "runs/train_unet").iterdir()), "a finished run leaves nothing"
