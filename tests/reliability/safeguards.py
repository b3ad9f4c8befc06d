"""Take each safeguard away: at least one test must fail, or it guards nothing that we would notice."""

import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.import_closure import ROOT
from tests.reliability.report import Result


@dataclass(frozen=True)
class Safeguard:
    """A line of code, what stands there without it, and the tests that must fail then."""

    name: str
    file: str
    line: str
    without: str
    tests: str


SAFEGUARDS = (
    Safeguard(
        "files reach the disk before their manifest",
        "ldm/compute/saved.py",
        "    for name in (TENSORS, _VALUES):\n        sync(directory / name)\n",
        "",
        "tests/test_state.py",
    ),
    Safeguard(
        "the manifest reaches the disk before the name",
        "ldm/compute/saved.py",
        "    sync(directory / _MANIFEST)\n    sync(directory)\n",
        "",
        "tests/test_state.py",
    ),
    Safeguard(
        "the name reaches the disk",
        "ldm/compute/state.py",
        "            building.rename(final)\n            saved.sync(self.directory)\n",
        "            building.rename(final)\n",
        "tests/test_state.py",
    ),
    Safeguard(
        "a state is hashed when it is read",
        "ldm/compute/saved.py",
        "        for name, sha256 in manifest.items():\n            artifact.check_file(directory / name, sha256)\n",
        "",
        "tests/test_state.py",
    ),
    Safeguard(
        "old states go after the new one has its name",
        "ldm/compute/state.py",
        "            self._publish(name, state)\n            states = states_of(self.directory)\n",
        "            for old in states_of(self.directory)[: 1 - num_kept or None]:\n"
        "                shutil.rmtree(old)\n"
        "            self._publish(name, state)\n            states = states_of(self.directory)\n",
        "tests/test_state.py",
    ),
    Safeguard(
        "one trainer in a run directory",
        "ldm/core/locks.py",
        "            _lock(file)\n",
        "            pass\n",
        "tests/test_locks.py tests/test_state.py",
    ),
    Safeguard(
        "no state with a number that is not finite",
        "ldm/compute/state.py",
        "        saved.refuse_nonfinite(state, self.directory, name)\n",
        "",
        "tests/test_state.py",
    ),
    Safeguard(
        "a fingerprint holds the params",
        "ldm/compute/fingerprint.py",
        "        **of_params(section),\n",
        "",
        "tests/test_fingerprint.py",
    ),
    Safeguard(
        "a fingerprint holds the code",
        "ldm/compute/fingerprint.py",
        "        **{key: sha256 for key, sha256 in code.items() if file_of(key) not in without},\n",
        "",
        "tests/test_fingerprint.py",
    ),
    Safeguard(
        "the death of an ancestor stops a trainer",
        "ldm/compute/stopping.py",
        '                self.reason = f"{watched[file]} died"\n',
        "                pass\n",
        "tests/test_stopping.py",
    ),
    Safeguard(
        "a terminal that is gone ends no training",
        "ldm/compute/stopping.py",
        "        with suppress(OSError):\n            self._stream.write(text)\n",
        "        self._stream.write(text)\n",
        "tests/test_stopping.py",
    ),
    Safeguard(
        "processes compare what their work depends on",
        "ldm/training/loop.py",
        "        ranks.agree(run.fingerprint)\n",
        "",
        "tests/test_ranks.py",
    ),
    Safeguard(
        "processes compare their weights",
        "ldm/training/loop.py",
        "        ranks.agree(ranks.checksums(own), fix)\n",
        "        pass\n",
        "tests/test_ranks.py",
    ),
    Safeguard(
        "processes compare their samples",
        "ldm/training/loop.py",
        '        ranks.agree({f"the batch of step {step + 1}": keys_at_step(step) for step in compared})\n',
        "",
        "tests/test_ranks.py",
    ),
    Safeguard(
        "all processes read the state that the first one chose",
        "ldm/compute/state.py",
        "        choice: list[str] | None = ranks.from_main(",
        "        choice: list[str] | None = (",
        "tests/test_ranks.py",
    ),
    Safeguard(
        "the samples of a split are counted",
        "ldm/core/shards_index.py",
        "    if not count == num_ends == index.num_samples:\n",
        "    if False:\n",
        "tests/test_shards.py",
    ),
    Safeguard(
        "a shard is hashed when it is read",
        "ldm/core/shards.py",
        "            hashes.check_once(Path(path), facts.sha256)\n",
        "",
        "tests/test_shards.py",
    ),
    Safeguard(
        "the fields of an index have a hash of their own",
        "ldm/core/shards_index.py",
        "        if (sealed := index.sealed()) != index:\n",
        "        if (sealed := index) != index:\n",
        "tests/test_shards.py",
    ),
    Safeguard(
        "a file that looks otherwise than when it was hashed is hashed again",
        "ldm/core/hashes.py",
        '== f"{sha256} {_looks(path)}\\n"',
        '!= ""',
        "tests/test_hashes.py",
    ),
    Safeguard(
        "a file that may still change is not remembered",
        "ldm/core/hashes.py",
        "_SETTLED_SECONDS = 2\n",
        "_SETTLED_SECONDS = -60\n",
        "tests/test_hashes.py",
    ),
    Safeguard(
        "weights and caches are hashed when they are read",
        "ldm/core/hashes.py",
        "    if actual != sha256:\n        raise IntegrityError(str(path), f",
        "    if False:\n        raise IntegrityError(str(path), f",
        "tests/test_artifact.py tests/test_cache.py",
    ),
    Safeguard(
        "an update that is not finite is not applied",
        "ldm/training/optimizer.py",
        "        is_good = torch.isfinite(sum(",
        "        is_good = True | torch.isfinite(sum(",
        "tests/test_training_loop.py",
    ),
    Safeguard(
        "a loss that is not finite poisons every gradient",
        "ldm/training/loop.py",
        "loss * torch.where(torch.isfinite(loss), 1.0, torch.nan).detach()",
        "loss",
        "tests/test_training_loop.py",
    ),
    Safeguard(
        "the skipped updates in a row survive a stop",
        "ldm/training/loop.py",
        '        self.bad = BadUpdates(*state.tensors["bad"].to(device))\n',
        "",
        "tests/test_training_loop.py",
    ),
    Safeguard(
        "an input is compared with the passport",
        "ldm/core/artifact.py",
        "    actual = passport.inputs.get(name)\n    if actual != sha256:\n",
        "    actual = passport.inputs.get(name)\n    if False:\n",
        "tests/test_artifact.py tests/test_pipeline_api.py",
    ),
    Safeguard(
        "a unit of the same key but another run is not used",
        "ldm/compute/state.py",
        "        self.directory = root / stage / artifact.sha256_json(fingerprint.identity(made_by))[:16]\n",
        '        self.directory = root / stage / "0"\n',
        "tests/test_stages_text.py",
    ),
)


def removed(folder: Path, trials: int, seed: int) -> Result:
    """Each of `trials` safeguards is removed from a copy of the repository, whose tests then run."""
    chosen = random.Random(seed).sample(SAFEGUARDS, trials) if trials < len(SAFEGUARDS) else SAFEGUARDS
    root = _copy(folder)
    for tests in sorted({safeguard.tests for safeguard in chosen}):
        done = _pytest(root, tests)
        assert done.returncode == 0, f"{tests} fail with every safeguard in place: {done.stdout[-2000:]}"
    failures = [problem for safeguard in chosen if (problem := _without(folder, safeguard))]
    return Result(len(chosen), len(chosen) - len(failures), {}, tuple(failures))


def _without(folder: Path, safeguard: Safeguard) -> str:
    """What is wrong, or nothing."""
    root = _copy(folder)
    text = (root / safeguard.file).read_text()
    if text.count(safeguard.line) != 1:
        return f"{safeguard.name}: its line stands {text.count(safeguard.line)} times in {safeguard.file}"
    (root / safeguard.file).write_text(text.replace(safeguard.line, safeguard.without))
    done = _pytest(root, safeguard.tests)
    # 1: tests ran and some failed. Another code would be a broken copy, which proves nothing.
    return "" if done.returncode == 1 else f"{safeguard.name}: pytest ends with {done.returncode}: {done.stdout[-500:]}"


def _copy(folder: Path) -> Path:
    """What the tests need of this repository."""
    root = folder / "copy"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name in ("ldm", "stages", "tests", "recipes", "pyproject.toml", "params.yaml", "paths.yaml", "dvc.yaml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, root / name)
    return root


def _pytest(root: Path, tests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=900)
