"""`prepare`, killed and shared: the shards have the bytes of a run that was left alone, and no work is done twice."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ldm.corpora import units
from tests import stage_scripts
from tests.forked import run_two
from tests.prepare_data import WEBDATASET, kept, outputs, write_params, write_tar
from tests.reliability import workspace
from tests.reliability.report import Result

_NUM_TARS, _PER_TAR, _PER_PART = 5, 23, 4
_NUM_PARTS = _NUM_TARS * -(-_PER_TAR // _PER_PART)


def killed(folder: Path, trials: int, seed: int) -> Result:
    """SIGKILL at a random moment, with and without worker processes."""
    draw, counts, failures = random.Random(seed), Counter[str](), list[str]()
    root, whole = _whole(folder)
    done = passed = 0
    while done < trials:
        num_workers = draw.choice([0, 2])
        num_kills, is_good = 0, True
        while num_kills < min(8, trials - done):
            before = kept(root)
            child = workspace.fork(root, "prepare", _small_parts(num_workers))
            _kill_after_some_parts(root, child, draw)
            if workspace.wait(child) != -signal.SIGKILL:
                break
            is_good &= before.items() <= kept(root).items()
            num_kills += 1
            counts["inside a commit"] += bool(list((root / "runs").glob("prepare/*/.*.building")))
            counts["while shards are written"] += (root / "data/.images.building").is_dir() and (
                len(kept(root)) == _NUM_PARTS
            )
        before = kept(root)
        code = workspace.wait(workspace.fork(root, "prepare", _small_parts(num_workers)))
        is_good &= code == 0 and outputs(root) == whole and before.items() <= kept(root).items()
        done, passed = done + num_kills, passed + num_kills * is_good
        counts["runs"] += 1
        failures += [] if is_good else [_said(root, code)]
        _forget(root)
    return Result(done, passed, dict(counts), tuple(failures))


def killed_workers(folder: Path, trials: int, seed: int) -> Result:
    """SIGKILL of two worker processes at random moments, as when memory is short: the run goes on and loses no sample,
    since each is tried three times."""
    draw, counts, failures = random.Random(seed), Counter[str](), list[str]()
    root, whole = _whole(folder)
    done = passed = 0
    while done < trials:
        child, num_kills = workspace.fork(root, "prepare", _small_parts(2)), 0
        while workspace.is_running(child) and num_kills < min(2, trials - done):
            time.sleep(draw.uniform(0, 0.5))
            num_kills += _kill_one(child, draw)
        code = workspace.wait(child)
        is_good = code == 0 and outputs(root) == whole
        done, passed = done + num_kills, passed + num_kills * is_good
        counts["runs"] += 1
        failures += [] if is_good else [_said(root, code)]
        _forget(root)
    return Result(done, passed, dict(counts), tuple(failures))


def shared(folder: Path, trials: int, seed: int) -> Result:
    """Two processes of one launch, after none, one or two killed runs of one process."""
    draw, failures = random.Random(seed), list[str]()
    root, whole = _whole(folder)
    for _ in range(trials):
        for _ in range(draw.randrange(3)):
            child = workspace.fork(root, "prepare", _small_parts(0))
            _kill_after_some_parts(root, child, draw)
            workspace.wait(child)
        before = kept(root)
        ended = run_two(root / "said", lambda _: _run_stage(root))
        if not (
            [each.code for each in ended] == [0, 0] and outputs(root) == whole and before.items() <= kept(root).items()
        ):
            failures.append(" / ".join(each.said[-300:] for each in ended))
        _forget(root)
    return Result(trials, trials - len(failures), {}, tuple(failures))


def grown(folder: Path, trials: int, seed: int) -> Result:
    """A tar added at a random place: only its parts are made, and no sample changes its split or its pixels."""
    draw, failures = random.Random(seed), list[str]()
    root, _ = _whole(folder)
    assert workspace.wait(workspace.fork(root, "prepare", _small_parts(0))) == 0
    for trial in range(trials):
        before = kept(root)
        name = f"{draw.randrange(100_000):05d}x.tar"
        write_tar(root / "data/source" / name, range(10_000 + 100 * trial, 10_000 + 100 * trial + _PER_TAR))
        code = workspace.wait(workspace.fork(root, "prepare", _small_parts(0)))
        after = kept(root)
        num_made = len(after.keys() - before.keys())
        if not (code == 0 and before.items() <= after.items() and num_made == _NUM_PARTS // _NUM_TARS):
            failures.append(f"{num_made} parts; {_said(root, code)}")
    return Result(trials, trials - len(failures), {}, tuple(failures))


def _whole(root: Path) -> tuple[Path, dict[str, bytes]]:
    """A corpus of tars, and what `prepare` makes of it when it is left alone."""
    for number in range(_NUM_TARS):
        write_tar(root / f"data/source/{number:05d}.tar", range(100 * number, 100 * number + _PER_TAR))
    write_params(root, WEBDATASET, num_workers=2)
    workspace.warm()
    assert workspace.wait(workspace.fork(root, "prepare")) == 0, (root / "said.txt").read_text()
    whole = outputs(root)
    _forget(root)
    return root, whole


def _said(root: Path, code: int) -> str:
    return f"exit {code}; {(root / 'said.txt').read_text()[-500:]}"


def _forget(root: Path) -> None:
    for name in ("data/images", "data/captions", "data/prepare_results", "runs"):
        shutil.rmtree(root / name, ignore_errors=True)


def _small_parts(num_workers: int) -> Callable[[], None]:
    """In the stage: parts of a few samples, each of which takes a while."""

    def install() -> None:
        write_params(Path(), WEBDATASET, num_workers)
        units._MOST_ITEMS = _PER_PART
        real = units.made.packed

        def packed(items: Any) -> Any:
            time.sleep(0.01)
            return real(items)

        units.made.packed = packed  # type: ignore[assignment]

    return install


def _run_stage(root: Path) -> None:
    os.chdir(root)
    units._MOST_ITEMS = _PER_PART
    stage_scripts.run("prepare")


def _kill_after_some_parts(root: Path, child: int, draw: random.Random) -> None:
    wanted, end = len(kept(root)) + draw.randrange(8), time.monotonic() + 60
    while len(kept(root)) < min(wanted, _NUM_PARTS) and workspace.is_running(child) and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.05))
    workspace.kill(child)


def _kill_one(child: int, draw: random.Random) -> bool:
    with suppress(psutil.Error):
        workers = psutil.Process(child).children()
        if workers:
            draw.choice(workers).kill()
            return True
    return False
