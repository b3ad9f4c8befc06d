"""Tiny folders in which the real stage scripts run, each in a forked process that may be killed."""

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from ruamel.yaml import YAML

from ldm.compute import saved, state
from ldm.core import artifact
from ldm.training import plots
from tests import stage_scripts, trained_data, training_data
from tests.forked import exit_code
from tests.import_closure import ROOT
from tests.repository import Repository

DISK_ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
NAMES = ("images", "captions", "latents", "embeddings", "autoencoder", "unet")


def for_training(root: Path, **training: Any) -> Path:
    """Inputs of train_autoencoder and train_unet, which take a fraction of a second each."""
    training_data.write_all(root / "data")
    given = YAML(typ="safe").load((ROOT / "paths.yaml").read_text())
    paths = {key: f"other/{Path(value).name}" for key, value in given["paths"].items()}
    paths |= {name: f"data/{name}" for name in NAMES} | {"runs": "runs", "autoencoder": "data/autoencoder"}
    source = training_data.AUTOENCODER["source"]
    sections = {
        "machine": {"threads": 1, "num_workers": 0, "attention": "math", "compile": False} | training_data.KEPT,
        "train_autoencoder": training_data.AUTOENCODER
        | {"source": source | {"training": source["training"] | {"num_accumulation_steps": 1} | training}},
        "train_unet": training_data.UNET | {"training": training_data.UNET["training"] | training},
    }
    (root / "params.yaml").write_text(json.dumps(sections))
    (root / "paths.yaml").write_text(json.dumps({"paths": paths}))
    return root


def for_precompute(root: Path) -> Path:
    """Inputs of train_clip, embed_text, encode_latents and sample."""
    root.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(root)
    trained_data.make(root)
    os.chdir(before)
    shutil.rmtree(root / "runs", ignore_errors=True)
    training = training_data.UNET["training"] | {"num_steps": 4, "save_every_steps": 2, "validate_every_steps": 4}
    source = {"kind": "train", "network": trained_data.CLIP, "training": training, "twins_together": False}
    trained_data.change(root, "train_clip", source=source, num_validation_pairs=4)
    trained_data.change(root, "encode_latents", statistics_tolerance=1.0, precision="fp32")
    return root


def tracked(folder: Path) -> Repository:
    """A git repository with artefacts of a tiny run, tracked by DVC."""
    root = folder / "repository"
    root.mkdir()
    before = Path.cwd()
    os.chdir(root)
    trained_data.make(root)
    os.chdir(before)
    shutil.rmtree(root / "runs", ignore_errors=True)
    repository = Repository.at(root)
    repository.run("git", "init", "--quiet", "--initial-branch", "main")
    repository.run("git", "config", "user.name", "test")
    repository.run("git", "config", "user.email", "test@example.org")
    repository.run("dvc", "init", "--quiet")
    names = sorted(path.name for path in (root / "data").iterdir() if path.name != "prepare")
    repository.run("dvc", "add", "--quiet", *(f"data/{name}" for name in names))
    return repository


def warm() -> None:
    """Import all that the stages do, once, so that a child starts in no time."""
    import matplotlib.figure  # noqa: F401
    import open_clip  # noqa: F401

    for path in sorted((ROOT / "stages").glob("*.py")):
        stage_scripts.script(path.stem)
    torch.set_num_threads(1)


def fork(root: Path, name: str, before: Callable[[], None] = lambda: None) -> int:
    """Run a stage in a child process in the folder, as `python stages/NAME.py` would; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(root)
        with open("said.txt", "ab", buffering=0) as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        # Whatever stands there belongs to the parent, such as what pytest captures with.
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = _run(name, before)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(name: str, before: Callable[[], None]) -> int:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)

    def main() -> str:
        before()
        return stage_scripts.script(name).main()

    return exit_code(main)


def wait(child: int) -> int:
    """Exit code of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process that may be gone."""
    with suppress(ProcessLookupError, psutil.Error):
        os.kill(child, number)


def is_running(child: int) -> bool:
    """Whether a child, for which nobody has waited yet, has not ended."""
    return psutil.Process(child).status() != psutil.STATUS_ZOMBIE


def contents(root: Path, *folders: str) -> dict[str, str]:
    """File -> SHA-256 below some folders."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): artifact.sha256_file(path) for path in paths}


def draw_nothing() -> None:
    """Skip the pictures of curves, which take longer than these trainings."""
    plots.draw_curves = lambda *_: None


def keep_final_state() -> None:
    """Leave the run directory of a finished training, so that its last state can be compared."""
    draw_nothing()
    state.Run.remove = state.Run.close  # type: ignore[method-assign]


def final_state(root: Path, name: str) -> dict[str, str]:
    """Hashes of weights, averages, optimizer, cursor and history of a finished training."""
    newest = max((root / "runs" / name).glob("*/step-*"))
    return json.loads((newest / "manifest.json").read_text())


class Interrupt:
    """Counts the calls by which a commit reaches the disk, and acts at one of them."""

    def __init__(self, publish: int, point: int, action: str) -> None:
        self.publish, self.point, self.action = publish, point, action
        self.num_published, self.calls = 0, list[str]()
        self.is_active = False

    def install(self) -> None:
        """Wrap the calls, in this process."""
        draw_nothing()
        for owner, name in [(os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "write_text")]:
            self._wrap(owner, name)
        self._wrap(artifact, "write_tensors")
        real = state.Run._publish

        def publish(run: state.Run, name: str, content: saved.State) -> None:
            self.num_published += 1
            with self._watching(self.num_published == self.publish):
                real(run, name, content)

        state.Run._publish = publish  # type: ignore[method-assign]

    @contextmanager
    def _watching(self, is_active: bool) -> Iterator[None]:
        self.is_active = is_active
        yield
        self.is_active = False

    def _wrap(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if self.is_active:
                self.calls.append(name)
                if len(self.calls) == self.point:
                    self._act()
            return real(*arguments, **options)

        setattr(owner, name, call)

    def _act(self) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = DISK_ERRORS[self.action]
        raise OSError(number, os.strerror(number))
