"""Every point at which a commit can be cut, in every stage that commits; and disks that are full."""

import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ldm.compute.saved import State, read
from ldm.compute.state import Run
from ldm.core.errors import MachineError
from tests.import_closure import ROOT
from tests.reliability import workspace
from tests.reliability.report import Result

NUM_POINTS = 10
_ACTIONS = ("kill", "EIO", "ENOSPC")
_OUTS = {
    "train_autoencoder": "data/autoencoder",
    "train_unet": "data/unet",
    "train_clip": "data/clip",
    "encode_latents": "data/latents",
    "embed_text": "data/embeddings",
    "sample": "data/samples",
    "evaluate": "data/evaluation",
}
_NUM_SIZES = 64
CASES = tuple(itertools.product(_OUTS, range(1, NUM_POINTS + 1), _ACTIONS))


def cut_commits(folder: Path, trials: int, seed: int) -> Result:
    """Kill, EIO or ENOSPC at a point of the second commit of a stage; the same command then ends as if nothing was."""
    workspace.warm()
    training = {"num_steps": 4, "save_every_steps": 2, "validate_every_steps": 4, "log_every_steps": 2}
    roots = [workspace.for_training(folder / "training", **training), workspace.for_precompute(folder / "precompute")]
    assert _run(roots[1], "sample") == 0, (roots[1] / "said.txt").read_text()  # evaluate reads samples
    whole: dict[str, dict[str, str]] = {}
    cases = random.Random(seed).sample(CASES, trials) if trials < len(CASES) else CASES
    counts, failures = Counter[str](), list[str]()
    for name, point, action in cases:
        root = roots[name not in ("train_autoencoder", "train_unet")]
        before = {path: (root / path).rename(root / f"kept-{Path(path).name}") for path in _inputs(root, name)}
        if name not in whole:
            assert _run(root, name) == 0, (root / "said.txt").read_text()[-2000:]
            whole[name] = _forget(root, name)
        problem = _cut(root, name, point, action, whole[name])
        for path, kept in before.items():
            kept.rename(root / path)
        counts[action] += 1
        if problem:
            failures.append(f"{name}, point {point}, {action}: {problem}")
    return Result(len(cases), len(cases) - len(failures), dict(counts), tuple(failures))


def _inputs(root: Path, name: str) -> list[str]:
    """What stands where the stage writes, and is an input of others: put aside meanwhile."""
    return [_OUTS[name]] if (root / _OUTS[name]).exists() else []


def _run(root: Path, name: str, interrupt: workspace.Interrupt | None = None) -> int:
    return workspace.wait(workspace.fork(root, name, interrupt.install if interrupt else workspace.draw_nothing))


def _forget(root: Path, name: str) -> dict[str, str]:
    """Hashes of the outputs, which are removed with all that was kept."""
    found = workspace.contents(root, _OUTS[name])
    shutil.rmtree(root / _OUTS[name])
    shutil.rmtree(root / "runs", ignore_errors=True)
    return found


def _cut(root: Path, name: str, point: int, action: str, whole: dict[str, str]) -> str:
    """What is wrong, or nothing."""
    (root / "said.txt").unlink()
    code = _run(root, name, workspace.Interrupt(2, point, action))
    if code != (-9 if action == "kill" else 5):
        return f"ended with {code}"
    if action != "kill" and "bytes are free" not in (root / "said.txt").read_text():
        return "the message does not say how many bytes are free"
    if _run(root, name) != 0:
        return f"does not go on: {(root / 'said.txt').read_text()[-500:]}"
    return "" if _forget(root, name) == whole else "other bytes than without"


def full_disks(folder: Path, trials: int, seed: int) -> Result:
    """Commits on a file system of a given size until it is full; the last good state loads, and space that is freed
    is used."""
    sizes = [100 + 40 * i for i in range(_NUM_SIZES)] * (1 + trials // _NUM_SIZES)
    command = [sys.executable, "-m", "tests.reliability.commits", str(folder), *map(str, sizes[:trials])]
    done = subprocess.run(["unshare", "-Urm", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        # No file system of our own can be mounted here: a limit on the size of a file stands in for a full disk.
        done = subprocess.run([*command, "limit"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    failures = tuple(json.loads(done.stdout.splitlines()[-1]))
    return Result(trials, trials - len(failures), {}, failures)


def fill(mount: Path, size_kib: int, is_mounted: bool) -> str:
    """What is wrong, or nothing, of commits into a file system of this size, or with files of this size at most."""
    with _mounted(mount, size_kib) if is_mounted else _limited(size_kib):
        ballast, run = mount / "ballast", Run(mount / "runs", "train", {"size": size_kib})
        ballast.write_bytes(bytes(40 * 1024))
        run.open()
        last = 0
        try:
            for step in range(1, 200):
                run.commit(_state(step, size_kib), num_kept=1 + step % 4)
                last = step
        except MachineError as error:
            return _after(run, str(error), last, ballast, _state(last + 1, size_kib))
        return "it was never full"


@contextmanager
def _mounted(mount: Path, size_kib: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "none", str(mount)], check=True)
    yield
    subprocess.run(["umount", str(mount)], check=True)


@contextmanager
def _limited(size_kib: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_kib * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _state(step: int, size_kib: int) -> State:
    """States that grow, so that at some step one does not fit."""
    return State(step, {"w": torch.full((step * size_kib * 8,), float(step))}, {"rows": [step]})


def _newest(run: Run) -> State | None:
    chosen = run.choose()
    return None if chosen is None else read(chosen)


def _after(run: Run, message: str, last: int, ballast: Path, wanted: State) -> str:
    needed = sum(tensor.nbytes for tensor in wanted.tensors.values())
    if "bytes are free" not in message or f"a state of {needed} bytes" not in message:
        return f"message: {message}"
    loaded = _newest(run)
    if (loaded.step if loaded else 0) != last:
        return f"loads {loaded and loaded.step}, last was {last}"
    if last and loaded and not bool((loaded.tensors["w"] == last).all()):
        return "other content"
    run.close()
    ballast.unlink()
    again = Run(run.directory.parents[1], "train", run.fingerprint)
    again.open()
    small = State(last + 1, {"w": torch.ones(64)}, {})
    again.commit(small, num_kept=1)
    after = _newest(again)
    again.close()
    return "" if after is not None and after.step == last + 1 else "does not go on after space was freed"


if __name__ == "__main__":
    found = []
    is_limited = sys.argv[-1] == "limit"
    for text in sys.argv[2 : -1 if is_limited else None]:
        place = Path(sys.argv[1]) / text
        place.mkdir(exist_ok=True)
        problem = fill(place, int(text), not is_limited)
        if problem:
            found.append(f"{text} KiB: {problem}")
    os.sync()
    print(json.dumps(found))
