"""What is killed at random moments, or asked to stop, ends in the bits of what was not."""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ldm.compute import stopping
from ldm.training import plots
from tests.reliability import workspace
from tests.reliability.report import Result

_TRAINING = {
    "num_steps": 12,
    "batch_size": 4,
    "log_every_steps": 3,
    "validate_every_steps": 6,
    "save_every_steps": 1,
    "num_kept_states": 2,
}
_OUTS = {"train_unet": ("data/unet", "other/unet_results"), "train_autoencoder": ("data/autoencoder",)}
_STOPPED, _REFUSED = 75, 5


def killed_unet(folder: Path, trials: int, seed: int) -> Result:
    """SIGKILL at a random moment of a UNet training."""
    return _killed(folder, "train_unet", trials, seed)


def killed_autoencoder(folder: Path, trials: int, seed: int) -> Result:
    """SIGKILL at a random moment of an autoencoder training."""
    return _killed(folder, "train_autoencoder", trials, seed)


def _killed(folder: Path, name: str, trials: int, seed: int) -> Result:
    """A run is killed up to ten times, then left to end; a trial passes if its run ends in the bits of the whole."""
    draw, counts, failures = random.Random(seed), Counter[str](), list[str]()
    root = workspace.for_training(folder, **_TRAINING)
    workspace.warm()
    started = time.perf_counter()
    assert workspace.wait(workspace.fork(root, name, workspace.keep_final_state)) == 0, (root / "said.txt").read_text()
    seconds = time.perf_counter() - started
    whole = _result(root, name)
    done = passed = 0
    while done < trials:
        shutil.rmtree(root / "runs")
        num_kills = _kill_repeatedly(root, name, min(10, trials - done), seconds, draw, counts)
        code = workspace.wait(workspace.fork(root, name, workspace.keep_final_state))
        is_equal = code == 0 and _result(root, name) == whole
        done, passed = done + num_kills, passed + num_kills * is_equal
        counts["runs"] += 1
        if not is_equal:
            failures.append(f"run {counts['runs']}: exit {code}; {(root / 'said.txt').read_text()[-500:]}")
    return Result(done, passed, dict(counts), tuple(failures))


def _kill_repeatedly(
    root: Path, name: str, most: int, seconds: float, draw: random.Random, counts: Counter[str]
) -> int:
    """Start a training and kill it at a random moment, `most` times or until it ends first; returns how often."""
    num_kills = 0
    for _ in range(most):
        child = workspace.fork(root, name, workspace.keep_final_state)
        time.sleep(draw.uniform(0.2, 0.9) * seconds)
        workspace.kill(child)
        if workspace.wait(child) != -signal.SIGKILL:
            break
        num_kills += 1
        counts["inside a commit"] += bool(list((root / "runs").glob(f"{name}/*/.*.building")))
    return num_kills


def killed_evaluation(folder: Path, trials: int, seed: int) -> Result:
    """SIGKILL at a random moment of an evaluation: it ends in the bytes of one that was not killed, and measures no
    unit again that it had kept."""
    draw, counts, failures = random.Random(seed), Counter[str](), list[str]()
    root = workspace.for_precompute(folder)
    workspace.warm()
    assert workspace.wait(workspace.fork(root, "sample")) == 0, (root / "said.txt").read_text()
    assert workspace.wait(workspace.fork(root, "evaluate", _note_units(root))) == 0, (root / "said.txt").read_text()
    whole, work = _forget_evaluation(root)
    done = passed = 0
    while done < trials:
        num_kills, code = 0, -signal.SIGKILL
        while code == -signal.SIGKILL:
            child = workspace.fork(root, "evaluate", _note_units(root))
            if done + num_kills < trials and num_kills < 10:
                _kill_after_some_units(root, child, draw)
            code = workspace.wait(child)
            num_kills += code == -signal.SIGKILL
            counts["after the first unit"] += code != 0 and _num_lines(root / "units.txt") > 0
            counts["inside a commit"] += code != 0 and bool(list((root / "runs").glob("evaluate/*/.*.building")))
        out, units = _forget_evaluation(root)
        # A kill may come between a unit and its note.
        is_good = (code, out) == (0, whole) and units <= work and (work - units).total() <= num_kills
        done, passed = done + num_kills, passed + num_kills * is_good
        counts["runs"] += 1
        if not is_good:
            failures.append(f"exit {code}, kept {units}; {(root / 'said.txt').read_text()[-500:]}")
    return Result(done, passed, dict(counts), tuple(failures))


def _kill_after_some_units(root: Path, child: int, draw: random.Random) -> None:
    """Before the stage has done the next few units, or as many as are left."""
    end = time.monotonic() + 60
    wanted = _num_lines(root / "units.txt") + draw.randrange(5)
    while _num_lines(root / "units.txt") < wanted and workspace.is_running(child) and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.1))
    workspace.kill(child)


def _forget_evaluation(root: Path) -> tuple[dict[str, str], Counter[str]]:
    """Output of the stage, and how often it kept each unit; both are removed, with all that was kept."""
    out, units = workspace.contents(root, "data/evaluation"), Counter((root / "units.txt").read_text().split())
    for path in (root / "data/evaluation", root / "runs"):
        shutil.rmtree(path, ignore_errors=True)
    (root / "units.txt").unlink()
    return out, units


def _note_units(root: Path) -> Callable[[], None]:
    """In the stage: note every unit of work as soon as it is kept, and take some time for it."""

    def install() -> None:
        real = Path.rename

        def rename(path: Path, target: Path) -> Path:
            is_unit = target.name.startswith("unit-")
            time.sleep(0.03 * is_unit)
            moved = real(path, target)
            if is_unit:
                with (root / "units.txt").open("a") as file:
                    file.write(f"{target.name}\n")
            return moved

        Path.rename = rename  # type: ignore[method-assign]
        plots.draw = lambda *_: None

    return install


def _result(root: Path, name: str) -> tuple[dict[str, str], dict[str, str]]:
    return workspace.final_state(root, name), workspace.contents(root, *_OUTS[name])


def stopped(folder: Path, trials: int, seed: int) -> Result:
    """SIGTERM to the group, or to the launcher alone: each step is done once, and two trainers never run at once."""
    draw, counts, failures = random.Random(seed), Counter[str](), list[str]()
    root = workspace.for_training(folder, **_TRAINING | {"save_every_steps": 100, "num_steps": 24})
    workspace.warm()
    done = passed = 0
    while done < trials:
        for path in (root / "runs", root / "steps.txt", root / "codes.txt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        sent = 0
        while not _is_done(root):
            is_sent = _stop_once(root, draw, counts) if done + sent < trials and sent < 5 else _let_end(root)
            sent += is_sent
        steps = (root / "steps.txt").read_text().split()
        codes = (root / "codes.txt").read_text().split()
        is_good = steps == [str(step) for step in range(24)] and set(codes) <= {"0", "75", "5"}
        done, passed = done + sent, passed + sent * is_good
        counts["runs"] += 1
        if not is_good:
            failures.append(f"steps {steps}, exit codes {codes}: {(root / 'said.txt').read_text()[-500:]}")
    return Result(done, passed, dict(counts), tuple(failures))


def _is_done(root: Path) -> bool:
    return (root / "codes.txt").is_file() and "0" in (root / "codes.txt").read_text().split()


def _stop_once(root: Path, draw: random.Random, counts: Counter[str]) -> bool:
    """Start launcher and trainer, signal them while the trainer works; a second trainer is refused meanwhile."""
    kind = draw.choice(["group", "launcher alone", "launcher killed"])
    num_before, num_codes = _num_lines(root / "steps.txt"), _num_lines(root / "codes.txt")
    launcher = _launch(root)
    _wait_until(lambda: _num_lines(root / "steps.txt") > num_before or _num_lines(root / "codes.txt") > num_codes)
    second = workspace.fork(root, "train_unet", _record(root))
    wanted = num_before + draw.randrange(1, 4)
    _wait_until(lambda: _num_lines(root / "steps.txt") >= wanted or _num_lines(root / "codes.txt") > num_codes)
    is_sent = _num_lines(root / "codes.txt") == num_codes
    if is_sent:
        if kind == "group":
            with suppress(ProcessLookupError):
                os.killpg(launcher, signal.SIGTERM)
        else:
            workspace.kill(launcher, signal.SIGTERM if kind == "launcher alone" else signal.SIGKILL)
        counts[kind] += 1
    # It is refused, or, if the first is gone by then, goes on where that one stopped.
    counts["second trainer refused"] += workspace.wait(second) == _REFUSED
    workspace.wait(launcher)
    _wait_until(lambda: _num_lines(root / "codes.txt") >= num_codes + 2)
    return is_sent


def _let_end(root: Path) -> bool:
    workspace.wait(workspace.fork(root, "train_unet", _record(root)))
    return False


def _launch(root: Path) -> int:
    """A process in a group of its own that starts the trainer and waits for it, as `accelerate launch` does."""
    launcher = os.fork()
    if launcher == 0:
        os.setsid()
        workspace.wait(workspace.fork(root, "train_unet", _record(root)))
        os._exit(0)
    return launcher


def _record(root: Path) -> Any:
    """In the trainer: note every step that is drawn, and the exit code."""

    def install() -> None:
        from ldm.denoiser.training import batches

        # This process's ancestors are called python, not accelerate.
        stopping._LAUNCHERS = {Path(name).name for name in (sys.executable, os.path.realpath(sys.executable), "python")}
        real, real_exit = batches.LatentBatches.__call__, os._exit

        def drawn(batches: Any, step: int, rows: slice) -> Any:
            with (root / "steps.txt").open("a") as file:
                file.write(f"{step}\n")
            time.sleep(0.02)
            return real(batches, step, rows)

        def leave(code: int) -> None:
            with (root / "codes.txt").open("a") as file:
                file.write(f"{code}\n")
            real_exit(code)

        batches.LatentBatches.__call__ = drawn  # type: ignore[method-assign]
        os._exit = leave  # type: ignore[assignment]

    return install


def _num_lines(path: Path) -> int:
    return len(path.read_text().split()) if path.is_file() else 0


def _wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.002)
