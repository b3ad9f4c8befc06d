"""What `make` does before anything is installed, and where it stands in a path with spaces."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_closure import ROOT

FAKE_PYTHON = '#!/bin/sh\ncase "$1" in -c) ;; *) echo "python $* | $(command -v dvc)" >> "{log}";; esac\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile in a path with spaces, beside an environment whose python writes down how it was called."""
    root = tmp_path / "my own project" / "ré"
    (root / ".venv/bin").mkdir(parents=True)
    shutil.copy2(ROOT / "Makefile", root)
    for name in ("requirements.lock", "pyproject.toml", ".venv/installed"):
        (root / name).touch()
    for name in ("python", "dvc"):
        (root / ".venv/bin" / name).write_text(FAKE_PYTHON.format(log=root / "log"))
        (root / ".venv/bin" / name).chmod(0o755)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


def make(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # `make test` runs this: settings for a nested make do not belong to this one.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    return subprocess.run(["make", *arguments], cwd=root, env={**outer, **environment}, timeout=60, **pipes)


@pytest.mark.parametrize(
    "target", ["demo", "try", "test", "test-web", "site", "gallery", "benchmarks", "deps", "reliability"]
)
def test_targets_run_in_a_path_with_spaces(project: Path, target: str) -> None:
    done = make(project, target)
    assert done.returncode == 0, done.stderr
    calls = (project / "log").read_text().splitlines()
    assert calls and all(call.endswith(f"| {project}/.venv/bin/dvc") for call in calls), "stages find the environment"


def test_recipe_passes_a_name_with_spaces_and_force_on(project: Path) -> None:
    command = ".venv/bin/python -m ldm.tools.cli recipe"
    cases = {(): [], ("NAME=our team/mine.yaml", "FORCE=1"): ["our team/mine.yaml", "--force"]}
    for arguments, passed in cases.items():
        done = make(project, "--dry-run", "recipe", *arguments)
        assert done.returncode == 0, done.stderr
        assert shlex.split(done.stdout.splitlines()[-1]) == [*command.split(), *passed]


def test_try_passes_a_prompt_on_as_it_is(project: Path) -> None:
    prompt = 'a "red" star; it\'s small'
    assert make(project, "try", f"PROMPT={prompt}").returncode == 0
    assert (project / "log").read_text().startswith(f"python -m ldm.tools.trial -- {prompt} | ")


def test_setup_installs_in_a_path_with_spaces(project: Path) -> None:
    shutil.rmtree(project / ".venv")
    base = project / "base python"
    fake = f'mkdir -p .venv/bin && cp "{base}" .venv/bin/python\n'
    base.write_text(FAKE_PYTHON.format(log=project / "log") + f'case "$2" in venv) {fake};; esac\n')
    base.chmod(0o755)
    done = make(project, "setup", f"BASE_PYTHON={base}")
    assert done.returncode == 0, done.stderr
    called = [line.split(" | ")[0].split()[1:4] for line in (project / "log").read_text().splitlines()]
    assert called == [["-m", "venv", ".venv"], *[["-m", "pip", "install"]] * 3]
    assert (project / ".venv/installed").is_file()


def test_a_tree_without_git_is_refused_before_anything_is_installed(project: Path) -> None:
    shutil.rmtree(project / ".git")
    shutil.rmtree(project / ".venv")
    done = make(project, "setup", f"BASE_PYTHON={sys.executable}", GIT_CEILING_DIRECTORIES=str(project.parent))
    assert done.returncode != 0
    assert "not a git repository" in done.stderr and "fix: git init" in done.stderr
    assert not (project / ".venv").exists()


def test_clean_removes_the_states_of_this_repository_and_names_shared_ones(project: Path, tmp_path: Path) -> None:
    (project / "runs/train_unet").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    done = make(project, "clean", LDM_RUNS=str(tmp_path / "shared"))
    assert not (project / "runs").exists()
    assert (tmp_path / "shared").is_dir() and f"{tmp_path}/shared (LDM_RUNS)" in done.stdout
