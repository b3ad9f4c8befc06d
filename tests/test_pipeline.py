"""The whole pipeline by DVC, on a recipe of seconds: what it makes, and what a change reruns."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.import_closure import ROOT

TRAININGS = ("train_autoencoder", "train_clip", "train_unet")


class Repository:
    """A copy of this repository, committed, with params of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            if (ROOT / name).is_file() and name != "dvc.lock":
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        shutil.copy2(ROOT / "recipes/tiny.yaml", root / "params.yaml")
        self.run("git", "init", "--quiet", "--initial-branch", "main")
        self.run("git", "config", "user.name", "test")
        self.run("git", "config", "user.email", "test@example.org")

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "state")

    def run(self, *command: str, check: bool = True) -> str:
        """What a command printed; unless it must succeed, what it complained of as well."""
        binaries = Path(sys.executable).parent
        environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "ACCELERATE_USE_CPU": "true"}
        program = str(binaries / command[0]) if (binaries / command[0]).is_file() else command[0]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run([program, *command[1:]], cwd=self.root, env=environment, timeout=1800, **pipes)
        assert done.returncode == 0 or not check, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def repro(self, *arguments: str) -> set[str]:
        """Names of the stages that `dvc repro` ran (or, with --dry, would run as far as it can know)."""
        return set(re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro", *arguments)))

    @contextmanager
    def changed(self, name: str, edit: Callable[[str], str]) -> Iterator[None]:
        """One edit of a file, taken back at the end."""
        path = self.root / name
        before = path.read_text()
        assert edit(before) != before
        path.write_text(edit(before))
        try:
            yield
        finally:
            path.write_text(before)


def setting(**values: Any) -> Callable[[str], str]:
    """An edit of params.yaml: values by key, with __ between the parts; every key must exist."""

    def edit(text: str) -> str:
        yaml, written = YAML(), StringIO()
        params = yaml.load(text)
        for key, value in values.items():
            *sections, last = key.split("__")
            section = params
            for name in sections:
                section = section[name]
            assert last in section, key
            section[last] = value
        yaml.dump(params, written)
        return written.getvalue()

    return edit


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The pipeline after one `dvc repro` of everything."""
    repository = Repository(tmp_path_factory.mktemp("repository"))
    params = repository.root / "params.yaml"
    short = {f"{name}__training__num_steps": 6 for name in TRAININGS}
    short |= {f"{name}__training__num_warmup_steps": 2 for name in TRAININGS}
    params.write_text(setting(**short)(params.read_text()))
    repository.commit()
    stages = re.findall(r"^  (\w+):\n    desc", (ROOT / "dvc.yaml").read_text(), flags=re.MULTILINE)
    assert repository.repro() == set(stages)
    return repository


def test_a_second_run_runs_nothing_and_git_sees_the_lock_only(repository: Repository) -> None:
    assert repository.repro() == set()
    assert repository.run("git", "status", "--porcelain").split("\n") == ["?? dvc.lock", ""]


def test_metrics_plots_and_artifacts_are_found_by_dvc(repository: Repository) -> None:
    shown = json.loads(repository.run("dvc", "metrics", "show", "--json"))
    names = {name for file in shown[""]["data"].values() for name in file["data"]}
    wanted = "scene_accuracy_held_out scene_accuracy_seen oracle_real oracle_shuffled oracle_reconstructed"
    assert {*wanted.split(), "relation_accuracy", "psnr_db"} <= names
    plots = json.loads(repository.run("dvc", "plots", "show", "--json"))
    assert not plots.get("errors")
    for plot in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]:
        title = plot if isinstance(plot, str) else next(iter(plot))
        assert "${" in title or plots["data"][title], title
    for path in re.findall(r"path: \$\{paths\.(\w+)\}", (ROOT / "dvc.yaml").read_text()):
        assert (repository.root / "data" / path).is_dir()


def test_an_edit_of_a_sampler_reruns_no_training(repository: Repository) -> None:
    with repository.changed("ldm/sampling.py", lambda text: f"{text}\n"):
        assert repository.repro("--dry") == {"sample", "evaluate"}


def test_an_edit_of_the_machine_reruns_nothing(repository: Repository) -> None:
    with repository.changed("params.yaml", setting(machine__threads=1, machine__num_workers=1)):
        assert repository.repro("--dry") == set()


def test_a_value_of_the_unet_reruns_its_training_and_what_follows(repository: Repository) -> None:
    with repository.changed("params.yaml", setting(train_unet__diffusion__caption_dropout=0.2)):
        stages = repository.repro("--dry")
    assert {"check", "train_unet"} <= stages <= {"check", "train_unet", "sample", "evaluate"}


def test_a_stage_launched_directly_makes_the_same_bytes(repository: Repository) -> None:
    repository.run("accelerate", "launch", "stages/sample.py")
    assert repository.repro("--dry") == set()


def test_a_mistake_in_the_last_section_stops_the_run_at_once(repository: Repository) -> None:
    with repository.changed("params.yaml", lambda text: text.replace("  num_pairs:", "  num_pair:")):
        said = repository.run("dvc", "repro", check=False)
    assert re.findall(r"Running stage '(\w+)'", said) == ["check"]
    assert "evaluate.num_pair: unknown key" in said
    assert "Traceback" not in said


def test_changed_captions_never_rerun_the_autoencoder(repository: Repository) -> None:
    with repository.changed("params.yaml", setting(prepare__corpus__num_captions_per_image=3)):
        assert repository.repro("prepare") == {"prepare"}
        stages = repository.repro("--dry")
    repository.repro("prepare")
    assert {"train_clip", "embed_text", "train_unet"} <= stages
    assert not {"prepare", "train_autoencoder", "encode_latents"} & stages


def test_a_guidance_change_reruns_what_depends_on_it(repository: Repository) -> None:
    with repository.changed("params.yaml", setting(sample__guidance_scale=2)):
        assert repository.repro() == {"check", "sample", "evaluate"}


def test_an_experiment_is_kept_beside_the_commit(repository: Repository) -> None:
    repository.repro()
    repository.commit()
    said = repository.run("dvc", "exp", "run", "--set-param", "sample.guidance_scale=2.5", "--name", "stronger")
    assert set(re.findall(r"Running stage '(\w+)'", said)) == {"check", "sample", "evaluate"}
    repository.run("git", "checkout", "--quiet", "params.yaml", "dvc.lock")
    repository.run("dvc", "checkout")
    before = YAML(typ="safe").load((repository.root / "params.yaml").read_text())["sample"]["guidance_scale"]
    (shown,) = json.loads(repository.run("dvc", "params", "diff", "HEAD", "stronger", "--json")).values()
    assert shown == {"sample.guidance_scale": {"old": before, "new": 2.5, "diff": 2.5 - before}}
    assert "stronger" in repository.run("dvc", "exp", "show", "--csv")
    (diff,) = json.loads(repository.run("dvc", "metrics", "diff", "HEAD", "stronger", "--json")).values()
    assert any(change["old"] != change["new"] for change in diff.values())
    plots = json.loads(repository.run("dvc", "plots", "diff", "HEAD", "stronger", "--json"))["data"]
    assert {plot["revisions"][0] for plot in plots["data/samples/grid.png"]} == {"HEAD", "stronger"}


def test_queued_experiments_run_their_own_code(repository: Repository) -> None:
    repository.commit()
    anchor = "    return Report(numbers, found, "
    for name, mark in {"first": 1, "second": 2}.items():
        marked = f'    numbers["m"] = {mark}\n{anchor}'
        with repository.changed("ldm/report.py", lambda text, marked=marked: text.replace(anchor, marked)):
            repository.run("dvc", "exp", "run", "--queue", "--name", name)
    repository.run("dvc", "exp", "run", "--run-all")
    (diff,) = json.loads(repository.run("dvc", "metrics", "diff", "first", "second", "--json")).values()
    assert diff == {"m": {"old": 1, "new": 2, "diff": 1}}
