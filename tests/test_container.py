"""The image and the dev container, as far as they can be tried without an engine: a linter, and steps in a folder."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pathspec
import pytest

from tests.import_closure import ROOT
from tests.repository import BINARIES

OF_ROOT = ("apt-get", "rm", "useradd", "chown")
"""Programs that change the system of an image; here they only say how they were called."""
FAKE = '#!/bin/sh\necho "$(basename "$0") $*" >> "{log}"\n'
FAKE_PYTHON = FAKE + 'case "$2" in venv) mkdir -p .venv/bin && cp "$0" .venv/bin/python;; esac\n'


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def ignored(files: list[str]) -> set[str]:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    anchored = [re.sub(r"^(!?)", r"\1/", pattern) for pattern in patterns]
    return set(pathspec.PathSpec.from_lines("gitwildmatch", anchored).match_files(files))


def tracked() -> list[str]:
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([BINARIES / "hadolint", "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_gets_every_file_of_git_and_none_that_a_run_writes() -> None:
    assert ignored(tracked()) == set()
    outputs = [line[1:] for line in (ROOT / "data/.gitignore").read_text().splitlines() if re.match(r"/\w", line)]
    assert len(outputs) > 10
    written = [*(f"data/{name}/a" for name in outputs), "runs/a", "outputs/a", ".venv/bin/python", ".dvc/cache/files/a"]
    brought = ["data/source/mine/a.png", "data/models/unet/a.safetensors", "ldm/__pycache__/a.pyc"]
    assert ignored([*written, *brought]) == {*written, *brought}


def test_the_steps_of_the_dockerfile_work_in_a_fresh_folder(tmp_path: Path) -> None:
    image, programs, log = tmp_path / "ldm", tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    for name in (*OF_ROOT, "python"):
        (programs / name).write_text((FAKE_PYTHON if name == "python" else FAKE).format(log=log))
        (programs / name).chmod(0o755)
    here = tmp_path
    for word, rest in instructions():
        if word == "WORKDIR":
            here = Path(rest.replace("/ldm", str(image)))
        elif word == "COPY":
            _, source, target = shlex.split(rest)
            assert target == "./" or (source, target) == (".", ".")
            for name in [source] if source != "." else tracked():
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, here / name)
        elif word == "RUN":
            command = re.sub(r"(?<!\S)/ldm\b", str(image), rest)
            environment = {"PATH": f"{programs}:/usr/bin:/bin"}
            done = subprocess.run(["sh", "-euc", command], cwd=here, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}:\n{done.stderr}"
    calls = log.read_text().splitlines()
    pip = "python -m pip install --no-cache-dir"
    assert [call for call in calls if call.startswith("python")] == [
        "python -m venv .venv",
        f"{pip} -r requirements.lock",
        f"{pip} --no-deps --no-build-isolation --editable .",
    ]
    assert any(re.match(r"apt-get install .*\bgit libfribidi0 make\b", call) for call in calls)
    assert (image / ".dvc/cache").is_dir() and (image / "dvc.yaml").is_file()
    # For `make` this is what `make setup` does: it installs nothing again.
    subprocess.run(["git", "init", "--quiet"], cwd=image, check=True)
    subprocess.run(["make", "setup"], cwd=image, check=True, capture_output=True)
    assert log.read_text().splitlines() == calls


def test_the_dev_container_is_a_stage_of_the_dockerfile_and_sets_itself_up() -> None:
    folder = ROOT / ".devcontainer"
    config = json.loads((folder / "devcontainer.json").read_text())
    build = config["build"]
    assert (folder / build["dockerfile"]).resolve() == ROOT / "Dockerfile" and (
        folder / build["context"]
    ).resolve() == ROOT
    assert build["target"] in [rest.split()[-1] for word, rest in instructions() if word == "FROM"]
    assert any(f"useradd --create-home --uid 1000 {config['remoteUser']} " in rest for _, rest in instructions())
    program, target = config["postCreateCommand"].split()
    assert program == "make" and re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("word", ["ADD", "ENTRYPOINT", "SHELL"])
def test_the_dockerfile_has_no_step_that_these_tests_do_not_follow(word: str) -> None:
    assert word not in [found for found, _ in instructions()]
