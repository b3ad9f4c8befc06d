"""Pushes that are cut while others pull, and clones that are killed on their way to the same results."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from ldm.tools import verify
from tests.import_closure import ROOT
from tests.reliability import workspace
from tests.reliability.report import Result
from tests.repository import Repository


def cut_pushes(folder: Path, trials: int, seed: int) -> Result:
    """`dvc push` is killed when a random number of objects is there, while a clone pulls: the clone takes nothing
    corrupt, and what `ldm verify --remote` says, then the same push, completes it."""
    repository = workspace.tracked(folder)
    repository.commit()
    draw, counts, failures = random.Random(seed), Counter[str](), list[str]()
    good = list(map(str, verify.local(repository.root).problems))
    num_objects = sum(path.is_file() for path in (repository.root / ".dvc/cache/files").rglob("*"))
    for trial in range(trials):
        remote, clone = folder / f"remote-{trial}", folder / f"clone-{trial}"
        repository.run("dvc", "remote", "add", "--default", "--force", "team", str(remote))
        repository.run("dvc", "remote", "modify", "team", "verify", "true")
        repository.commit()
        repository.run("git", "clone", "--quiet", str(repository.root), str(clone))
        problem = _cut_push(repository, Repository.at(clone), remote, draw.randrange(num_objects), good, counts)
        if problem:
            failures.append(f"push {trial}: {problem}")
        for path in (remote, clone):
            shutil.rmtree(path)
    return Result(trials, trials - len(failures), dict(counts), tuple(failures))


def _cut_push(
    repository: Repository, clone: Repository, remote: Path, most: int, good: list[str], counts: Counter[str]
) -> str:
    """What is wrong, or nothing."""
    push, pull = _start(repository.root, "push"), _start(clone.root, "pull")
    while push.poll() is None and sum(path.is_file() for path in remote.rglob("*")) < most:
        time.sleep(0.002)
    counts["cut on the way"] += push.poll() is None
    _kill_group(push)
    pull.wait(120)
    taken = [problem for problem in map(str, verify.local(clone.root).problems) if " has MD5 " in problem]
    if taken:
        return f"the clone took {taken[0]}"
    problems = list(map(str, verify.remote("team", repository.root).problems))
    counts["corrupt objects in the remote, named"] += sum(" has MD5 " in problem for problem in problems)
    _delete(re.findall(r"good copy: delete (.+) from the remote; rm -rf (\S+); dvc push", "\n".join(problems)))
    repository.run("dvc", "push")
    clone.run("dvc", "pull")
    if verify.remote("team", repository.root).problems:
        return "the second push did not complete it"
    problems = map(str, verify.local(clone.root).problems)
    found = [problem.replace(str(clone.root), str(repository.root)) for problem in problems]
    return "" if found == good else f"the clone has {found}"


def _delete(fixes: list[tuple[str, str]]) -> None:
    """Do what `ldm verify --remote` says."""
    for objects, memory in fixes:
        for path in objects.split(", "):
            Path(path).unlink(missing_ok=True)
        shutil.rmtree(memory, ignore_errors=True)


def _start(root: Path, command: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "dvc", command]
    return subprocess.Popen(
        program, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def twin_clones(folder: Path, trials: int, seed: int) -> Result:
    """Two clean clones run the tiny recipe, one of them killed five times on the way: the same dvc.lock."""
    failures: list[str] = []
    for trial in range(trials):
        locks: list[bytes] = []
        for name, num_kills in (("whole", 0), ("killed", 5)):
            (folder / f"{name}-{trial}").mkdir()
            repository = Repository(folder / f"{name}-{trial}")
            repository.commit()
            killed = repro_with_kills(repository, num_kills, random.Random(seed + trial))
            assert killed == num_kills, f"killed {killed} times only"
            locks.append((repository.root / "dvc.lock").read_bytes())
        if locks[0] != locks[1]:
            failures.append(f"pair {trial}: other locks")
    return Result(trials, trials - len(failures), {}, tuple(failures))


def default_clone(folder: Path, trials: int, seed: int) -> Result:
    """A clean clone of this commit is killed five times on its way: the dvc.lock that a run of the commit left here."""
    failures: list[str] = []
    for trial in range(trials):
        root = folder / f"clone-{trial}"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
        clone = Repository.at(root)
        committed = (root / "dvc.lock").read_bytes()
        killed = repro_with_kills(clone, 5, random.Random(seed + trial), seconds=(60, 300))
        assert killed == 5, f"killed {killed} times only"
        if (root / "dvc.lock").read_bytes() != committed:
            failures.append(f"clone {trial}: {clone.run('git', 'diff', '--unified=0', 'dvc.lock')}")
    return Result(trials, trials - len(failures), {}, tuple(failures))


def repro_with_kills(
    repository: Repository, num_kills: int, draw: random.Random, seconds: tuple[float, float] = (4, 16)
) -> int:
    """`dvc repro` until it is done, killed at random moments (so many seconds after its start): all of it, or `dvc`
    alone. Returns how often."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"ACCELERATE_USE_CPU": "true"}
    killed = 0
    for attempt in range(num_kills + 20):
        with (repository.root / "said.txt").open("ab") as said:
            command = [sys.executable, "-m", "dvc", "repro"]
            pipes = {"stdout": said, "stderr": said}
            repro = subprocess.Popen(command, cwd=repository.root, env=environment, start_new_session=True, **pipes)
        with suppress(subprocess.TimeoutExpired):
            repro.wait(draw.uniform(*seconds) if killed < num_kills else None)
        if repro.returncode == 0:
            break
        if repro.returncode is None:
            killed += 1
            _kill_group(repro) if attempt % 2 else repro.kill()
            repro.wait()
        time.sleep(0.5)  # a trainer whose dvc was killed saves its state and lets go of its run
    (repository.root / "said.txt").rename(repository.root.with_suffix(".said"))
    assert repro.returncode == 0, repository.root.with_suffix(".said").read_text()[-3000:]
    return killed
