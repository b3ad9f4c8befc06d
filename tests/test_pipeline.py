"""The whole pipeline by DVC, on a recipe of seconds: what it makes, and what a change reruns."""

import json
import re

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.parser import Parser

from tests.import_closure import ROOT, STUDIES, stage_scripts
from tests.repository import Repository, setting


@pytest.fixture(scope="module")
def repository(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A copy of the finished pipeline, since these tests change it."""
    return repository.copy(tmp_path_factory.mktemp("pipeline") / "repository")


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
        is_empty = title == "rejected"  # no scene is, and DVC draws no table without rows
        assert "${" in title or bool(plots["data"][title]) is not is_empty, title
    for path in re.findall(r"path: \$\{paths\.(\w+)\}", (ROOT / "dvc.yaml").read_text()):
        assert (repository.root / "data" / path).is_dir()


def test_an_edit_of_a_sampler_reruns_no_training(repository: Repository) -> None:
    with repository.changed("ldm/sampling/samplers/dpm_solver.py", lambda text: f"{text}\n"):
        assert repository.repro("--dry") == {"check", "sample", "model"}, "evaluate depends on it through samples alone"


TRAININGS = {"train_autoencoder", "train_clip", "train_unet"}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("denoiser/model/params", {"check", "train_unet", "sample", "model"}),
        ("compute/attention", {*TRAININGS, "encode_latents", "embed_text", "sample", "evaluate", "model"}),
        ("training/params", {"check", *TRAININGS}),
    ],
)
def test_an_edit_of_code_changes_the_stages_that_run_it(repository: Repository, file: str, stages: set[str]) -> None:
    with repository.changed(f"ldm/{file}.py", lambda text: f"{text}\n# a comment\n"):
        assert json.loads(repository.run("dvc", "status", "--json", "dvc.yaml")).keys() == stages


def test_studies_run_by_their_own_pipeline_alone(repository: Repository) -> None:
    assert repository.repro("--dry") == set()
    said = repository.run("dvc", "repro", "--dry", "studies/dvc.yaml")
    assert set(re.findall(r"Running stage 'studies/dvc.yaml:(\w+)'", said)) == stage_scripts(ROOT, STUDIES).keys()


def test_an_edit_of_the_machine_reruns_nothing(repository: Repository) -> None:
    with repository.changed("params.yaml", setting(machine__threads=2, machine__num_workers=1)):
        assert repository.repro("--dry") == set()


def test_a_value_of_the_unet_reruns_its_training_and_what_follows(repository: Repository) -> None:
    with repository.changed("params.yaml", setting(train_unet__diffusion__caption_dropout=0.2)):
        stages = repository.repro("--dry")
    assert {"check", "train_unet"} <= stages <= {"check", "train_unet", "sample", "evaluate", "model"}


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


def test_a_queued_experiment_runs_its_own_code(repository: Repository) -> None:
    """One, since DVC's worker may die of a message that is half written when it looks for another task."""
    repository.repro()
    repository.commit()
    anchor = '            "memorised_share": share.value,\n'
    with repository.changed(
        "ldm/tools/card/memorisation.py", lambda text: text.replace(anchor, f'{anchor}            "marked": 1,\n')
    ):
        repository.run("dvc", "exp", "run", "--queue", "--name", "marked", "model")
    repository.run("dvc", "exp", "run", "--run-all")
    (diff,) = json.loads(repository.run("dvc", "metrics", "diff", "HEAD", "marked", "--json")).values()
    assert diff == {"marked": {"old": None, "new": 1}}


def test_dvc_reads_yaml_by_compiled_code() -> None:
    """Without it a third of a `dvc repro` that finds nothing to do is the parsing of lock files and params."""
    assert YAML(typ="safe").Parser is not Parser
