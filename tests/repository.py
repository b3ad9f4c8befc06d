"""A copy of this repository with params of its own: what users do with git, DVC and accelerate, done for real."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML

from ldm.tools.recipe import Recipe
from tests.import_closure import ROOT

BINARIES = Path(sys.executable).parent
TRAININGS = ("train_autoencoder__source__training", "train_clip__source__training", "train_unet__training")


class Repository:
    """A git repository with this code, and what a user types in it."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> Self:
        """One that is there already, such as a clone."""
        repository = cls.__new__(cls)
        repository.root = root
        return repository

    def __init__(self, root: Path) -> None:
        """A new one: a copy of this repository with the params of the recipe tiny."""
        self.root = root
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            if (ROOT / name).is_file() and name != "dvc.lock":
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        (root / "params.yaml").write_text(params_of("tiny"))
        self.run("git", "init", "--quiet", "--initial-branch", "main")
        self.run("git", "config", "user.name", "test")
        self.run("git", "config", "user.email", "test@example.org")

    def copy(self, root: Path) -> "Repository":
        """All files of it, data and DVC's cache among them, in a folder that is not there yet."""
        shutil.copytree(self.root, root, symlinks=True)
        return Repository.at(root)

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "state")

    def run(self, *command: str, check: bool = True) -> str:
        """What a command printed; unless it must succeed, what it complained of as well."""
        program = str(BINARIES / command[0]) if (BINARIES / command[0]).is_file() else command[0]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run([program, *command[1:]], cwd=self.root, env=_environment(), timeout=1800, **pipes)
        assert done.returncode == 0 or not check, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def interrupt(self, when: Callable[[], bool], *command: str, kill: bool = False) -> str:
        """What a command and its children printed until Ctrl-C, or SIGKILL to the command alone, which comes as soon as
        `when` is true."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        # A test run in the background ignores SIGINT, and so would its children.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            running = subprocess.Popen(command, cwd=self.root, env=_environment(), **pipes)
        finally:
            signal.signal(signal.SIGINT, handler)
        end = time.monotonic() + 600
        while not when() and running.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        running.kill() if kill else os.killpg(running.pid, signal.SIGINT)
        return running.communicate(timeout=600)[0]

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


def _environment() -> dict[str, str]:
    """Without LDM_RUNS: runs of a copy lie in the copy, not among those that the user shares."""
    kept = {name: value for name, value in os.environ.items() if name != "LDM_RUNS"}
    return kept | {"PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}", "ACCELERATE_USE_CPU": "true"}


def traces_of(repository: Repository) -> Path:
    """Where each stage of the fixture `repository` wrote what it opened and imported (`tests/tracing`)."""
    return repository.root.with_name("traces")


@cache
def params_of(recipe: str) -> str:
    """What `ldm recipe` writes."""
    return Recipe(recipe, ROOT).text()


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


def short_recipe(num_steps: int = 6) -> Callable[[str], str]:
    """An edit of the recipe tiny: trainings of a few steps on one thread."""
    values = {f"{name}__num_steps": num_steps for name in TRAININGS}
    warmup = {f"{name}__num_warmup_steps": 2 for name in TRAININGS}
    # More threads gain nothing here, and lose a lot beside other processes.
    return setting(machine__threads=1, **values, **warmup)
