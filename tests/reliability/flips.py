"""One flipped bit anywhere: refused before use, with the file and both hashes named."""

import contextlib
import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.compute.saved import State, read
from ldm.compute.state import Run
from ldm.core import artifact
from ldm.core.errors import IntegrityError
from ldm.core.shards import Shards
from ldm.precompute.cache import Cache
from ldm.text.embedding.embeddings import TextEmbeddings
from ldm.tools import verify
from tests import training_data
from tests.kinds import KINDS
from tests.reliability import workspace
from tests.reliability.report import Result

_NUM_FILES_AT_ONCE = 40
_EMBEDDINGS = (
    "00000.safetensors",
    "captions.safetensors",
    "null.safetensors",
    "words.json",
    "index.json",
    "passport.json",
)


def shards(folder: Path, trials: int, seed: int) -> Result:
    """A bit of a webdataset shard."""
    training_data.write_images(folder)
    return _one_by_one(sorted((folder / "train").iterdir()), lambda: list(Shards(folder / "train")), trials, seed)


def latents(folder: Path, trials: int, seed: int) -> Result:
    """A bit of the latent cache or its index."""
    training_data.write_latents(folder, "0" * 64)
    paths = [folder / "train" / name for name in ("00000.safetensors", "index.json", "passport.json")]

    def read() -> None:
        cache = Cache(folder / "train", LATENTS)
        cache.gather("mean", np.arange(len(cache)))

    return _one_by_one(paths, read, trials, seed)


def embeddings(folder: Path, trials: int, seed: int) -> Result:
    """A bit of the text cache: rows, captions, null embedding or index."""
    training_data.write_embeddings(folder)
    paths = [folder / name for name in _EMBEDDINGS]

    def read() -> None:
        embeddings = TextEmbeddings(folder)
        embeddings.parts(np.arange(len(embeddings)))

    return _one_by_one(paths, read, trials, seed)


def models(folder: Path, trials: int, seed: int) -> Result:
    """A bit of trained weights or their passport."""
    training_data.write_autoencoder(folder)
    return _one_by_one(sorted(folder.iterdir()), lambda: artifact.read(folder, KINDS["autoencoder"]), trials, seed)


def states(folder: Path, trials: int, seed: int) -> Result:
    """A bit of the newest resumable state: the one before it is used."""
    import torch

    run = Run(folder, "train", {})
    run.open()
    for step in (1, 2):
        run.commit(State(step, {"w": torch.full((40,), float(step))}, {"rows": [step, 0.25]}), num_kept=2)
    newest = run.directory / "step-000000002"

    def load() -> None:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            chosen = run.choose()
        assert chosen is not None
        if read(chosen).step == 1:
            raise IntegrityError(said.getvalue(), "the state before it", "the newest", "none")

    return _one_by_one(
        [newest / name for name in ("tensors.safetensors", "values.json", "manifest.json")], load, trials, seed
    )


def _one_by_one(paths: Sequence[Path], read: Callable[[], Any], trials: int, seed: int) -> Result:
    draw, failures = random.Random(seed), list[str]()
    read()
    for _ in range(trials):
        path = draw.choices(paths, weights=[path.stat().st_size for path in paths])[0]
        with _flipped(path, draw) as (before, after, place):
            try:
                read()
                failures.append(f"{path} {place}: not noticed")
            except IntegrityError as error:
                # A file of hashes says so itself where it no longer parses, or no longer fits what it describes.
                is_told = path.suffix == ".json" or (before in str(error) and after in str(error))
                if not (is_told and (path.name in str(error) or path.parent.name in str(error))):
                    failures.append(f"{path} {place}: {error}")
    read()
    return Result(trials, trials - len(failures), {}, tuple(failures))


@contextlib.contextmanager
def _flipped(path: Path, draw: random.Random, hash_file: Callable[[Path], str] = artifact.sha256_file) -> Iterator[Any]:
    """Hash before, hash after, and place, while one bit is flipped; the file's mode stays, which is what DVC trusts."""
    data, mode = path.read_bytes(), path.stat().st_mode
    bit = draw.randrange(8 * len(data))
    before, changed = hash_file(path), bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    _write(path, changed, mode)
    yield before, hash_file(path), f"bit {bit}"
    _write(path, data, mode)


def _write(path: Path, data: bytes | bytearray, mode: int) -> None:
    # DVC's cache may hold hard links: a new file leaves others alone.
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.chmod(mode)
    new.replace(path)


def cache_objects(folder: Path, trials: int, seed: int) -> Result:
    """A bit of an object in DVC's cache, which DVC itself does not read again."""
    repository = workspace.tracked(folder)
    return _at_once(repository.root / ".dvc/cache/files/md5", lambda: verify.local(repository.root), trials, seed)


def remote_objects(folder: Path, trials: int, seed: int) -> Result:
    """A bit of an object in a DVC remote."""
    repository = workspace.tracked(folder)
    repository.run("dvc", "remote", "add", "--default", "team", str(folder / "remote"))
    repository.run("dvc", "push")
    # Without a good copy elsewhere nothing but the hash of the content can tell.
    return _at_once(folder / "remote/files/md5", lambda: verify.remote("team", repository.root), trials, seed)


def _at_once(store: Path, check: Callable[[], verify.Report], trials: int, seed: int) -> Result:
    """Many objects at a time have a bit flipped; each must be named. Between, a good tree raises no alarm.

    Listings of folders have their own turns: without a good one nobody knows what the folder should hold.
    """
    draw, failures, counts = random.Random(seed), list[str](), Counter[str]()
    good = list(map(str, check().problems))
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)
    turns = [[p for p in files if p.suffix != ".dir"]] * 4 + [[p for p in files if p.suffix == ".dir"]]
    done = 0
    while done < trials:
        paths = turns[counts["checks of the good tree"] % len(turns)]
        number = min(_NUM_FILES_AT_ONCE, len(paths) // 2, trials - done)
        with contextlib.ExitStack() as stack:
            chosen = draw.sample(paths, number)
            flips = [(path, *stack.enter_context(_flipped(path, draw, verify.md5_of_file))) for path in chosen]
            said = "\n".join(map(str, check().problems))
            for path, before, after, place in flips:
                name = path.parent.name + path.name
                if not (name.removesuffix(".dir") == before and after in said and before in said):
                    failures.append(f"{path} {place}: not named")
        done += number
        counts["checks of the good tree"] += 1
        if list(map(str, check().problems)) != good:
            failures.append("a false alarm")
    return Result(done, done - len(failures), dict(counts), tuple(failures))
