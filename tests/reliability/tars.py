"""Damaged tars of users, and damaged shards: nothing hangs, nothing is taken that is wrong, nothing is lost untold."""

import contextlib
import io
import random
from collections import Counter
from pathlib import Path

import numpy as np

from ldm.core import shards
from ldm.core.errors import IntegrityError
from ldm.core.shards import Shards
from ldm.corpora import webdataset
from ldm.corpora.files import Files
from ldm.corpora.pairs import Item, Pair, Picture, Rejected, Rejection
from tests import mutations
from tests.corpora import WEBDATASET
from tests.mutations import Original
from tests.reliability.report import Result

_NUM_AT_RISK = 3
"""Untouched samples that a trial may cost: names and ends of some members hang on their neighbours, and a mutation has
up to three edges."""


def user_tars(folder: Path, trials: int, seed: int) -> Result:
    """A user's tar with one mutation, under each value of `damaged_tars`."""
    failures, counts = list[str](), Counter[str]()
    for trial in range(trials):
        draw = random.Random(f"{seed}/{trial}")
        kind = list(mutations.KINDS)[trial % len(mutations.KINDS)]
        whole = mutations.original(draw)
        data, pieces = mutations.mutate(draw, kind, whole.data)
        (folder / "mine.tar").write_bytes(data)
        damaged_tars = draw.choice(("refuse", "salvage", "salvage", "skip"))
        try:
            untouched, last = mutations.untouched(whole, pieces), pieces[-1]
            is_seamless = isinstance(last, tuple) and _is_seamless(kind, data, last[0])
            problems = _problems(folder, whole, untouched, damaged_tars, is_seamless, counts)
        except Exception as error:
            problems = [f"{type(error).__name__}: {error}"]
        failures += [f"trial {trial}, {kind}, {damaged_tars}: {problem}" for problem in problems]
    return Result(trials, trials - len({line.split(",")[0] for line in failures}), dict(counts), tuple(failures))


def _is_seamless(kind: str, data: bytes, end: int) -> bool:
    """Whether a tar may look as if its lost members had never been there: whole blocks were taken out between two
    members, or zeros were written over the last ones up to byte `end`, and now look like the end."""
    is_tail = kind == "zero" and not data[end:].strip(b"\0")
    return is_tail or (kind == "remove" and len(data) % mutations.BLOCK == 0)


def _problems(
    folder: Path, whole: Original, untouched: set[str], damaged_tars: str, is_seamless: bool, counts: Counter[str]
) -> list[str]:
    params = WEBDATASET.model_copy(update={"damaged_tars": damaged_tars})
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            (unit,) = webdataset.units(params, 16, Files(folder))
            items = list(unit.items())
        except IntegrityError as error:
            counts["refused"] += 1
            is_clear = "mine.tar (byte " in str(error) and damaged_tars == "refuse"
            return [] if is_clear else [f"refused by {error}"]
    taken, rejected = _made(items)
    counts["samples taken"] += len(taken)
    counts["rejections"] += len(rejected)
    wrong = [key for key, pair in taken.items() if key in untouched and not _is_equal(whole, key, pair)]
    costs = untouched - taken.keys()
    lost = whole.pixels.keys() - taken.keys() - {rejection.source["key"] for rejection in rejected}
    # A lost name is told by the place that cost it.
    is_told = any(rejection.source["key"] not in whole.pixels for rejection in rejected) or bool(said.getvalue())
    is_told |= any(rejection.reason.startswith("DAMAGED") for rejection in rejected) or is_seamless
    problems = [f"{len(wrong)} samples are wrong"] * bool(wrong) + ["untold losses"] * bool(lost and not is_told)
    if damaged_tars == "salvage" and len(costs) > _NUM_AT_RISK:
        problems.append(f"costs {len(costs)} untouched samples")
    return problems


def _made(items: list[Item]) -> tuple[dict[str, Pair], list[Rejection]]:
    """What `prepare` would take, by key, and what it would reject once it has decoded the pictures."""
    taken: dict[str, Pair] = {}
    rejected: list[Rejection] = []
    for item in items:
        if isinstance(item, Rejection):
            rejected.append(item)
        if not isinstance(item, Pair):
            continue
        try:
            assert callable(item.image)
            item.image()
            taken[item.source["key"]] = item
        except Rejected as error:
            rejected.append(Rejection(item.key, error.reason, error.detail, item.source))
    return taken, rejected


def _is_equal(whole: Original, key: str, pair: Pair) -> bool:
    return pair.captions == [whole.captions[key]] and (_pixels(pair) == whole.pixels[key]).all()


def _pixels(pair: Pair) -> np.ndarray:
    made = pair.image() if callable(pair.image) else pair.image
    return made.pixels if isinstance(made, Picture) else made


def own_shards(folder: Path, trials: int, seed: int) -> Result:
    """A shard of `prepare`, or its index, with one mutation: refused, or read as it was where no byte changed."""
    draw, failures, counts = random.Random(seed), list[str](), Counter[str]()
    samples = [(f"s{i:03d}", {"json": b'{"n":%d}' % i, "png": draw.randbytes(700 + i)}) for i in range(30)]
    shards.write(folder / "train", samples, 10)
    paths = sorted((folder / "train").iterdir())
    for trial in range(trials):
        path, kind = draw.choice(paths), list(mutations.KINDS)[trial % len(mutations.KINDS)]
        good = path.read_bytes()
        kind = "flip" if kind == "header" and path.suffix != ".tar" else kind
        _replace(path, mutations.mutate(draw, kind, good)[0])
        try:
            split = Shards(folder / "train")
            read = [(key, split[i]) for i, key in enumerate(split.keys)]
            counts["read"] += 1
            if read != samples:
                failures.append(f"trial {trial}, {kind} of {path.name}: read as other samples")
        except IntegrityError as error:
            counts["refused"] += 1
            # A changed index may say that any tar is wrong.
            where = str(path) if path.suffix == ".tar" else f"{folder}/train/"
            if not str(error).startswith(where):
                failures.append(f"trial {trial}, {kind} of {path.name}: {error}")
        except Exception as error:
            failures.append(f"trial {trial}, {kind} of {path.name}: {type(error).__name__}: {error}")
        _replace(path, good)
    return Result(trials, trials - len(failures), dict(counts), tuple(failures))


def _replace(path: Path, data: bytes) -> None:
    # A new file, since hashes of files that look unchanged may be remembered.
    new = path.with_name("new")
    new.write_bytes(data)
    new.replace(path)
