"""What samples have wrong: which values are taken for which others, and the worst samples beside what was asked for."""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from ldm.core import images
from ldm.core.errors import IntegrityError
from ldm.evaluation.measure import NUM_COLUMNS, REAL, Measured, features_in
from ldm.evaluation.real_images import RealImages
from ldm.evaluation.spaces import OWN_CLIP
from ldm.oracles.oracle import WRONG, Oracle, Told
from ldm.sampling.samples import SETS, Samples
from ldm.training.plots import write_rows

if TYPE_CHECKING:
    from PIL.Image import Image

CONFUSION, FAILURES, PICTURE = "confusion.csv", "failures.csv", "failures.png"
NUM_WORST = 16
SAMPLES, REAL_IMAGES = "samples", "real images"
"""Whose values a row of the confusion matrix counts; the real images say how far to trust who reads them."""
_FAILURE_COLUMNS = ("set", "number", "prompt", "wrong", "read", "score")
_CONFUSION_COLUMNS = ("images", "attribute", "asked", "read", "num")
_LIST = "; "
Row = TypeVar("Row")


@dataclass(frozen=True)
class Failure:
    """A sample that is among the worst."""

    images: str
    """Its set."""
    number: int
    prompt: str
    wrong: Sequence[str]
    """Attributes that it has wrong, in words; none if nothing checks them."""
    read: Sequence[str]
    """The values that were read in place of those asked for."""
    score: float
    """How much less than the real image it is like its prompt: the difference of their CLIP scores, or, without a CLIP,
    minus the distance between their features."""


def confusion(told: Mapping[str, Sequence[Sequence[Told]]]) -> Counter[tuple[str, str, str, str]]:
    """How often a value was read where one was asked for: (`SAMPLES` or `REAL_IMAGES`, attribute, asked, read) ->
    number. told: name of a subject -> for each of its images."""
    groups = {name: SAMPLES for name in SETS} | {REAL + name: REAL_IMAGES for name in SETS}
    counts = Counter[tuple[str, str, str, str]]()
    for name, group in groups.items():
        for image in told.get(name, ()):
            counts.update((group, *each) for each in image)
    return counts


def worst(
    samples: Mapping[str, Samples],
    measured: Measured,
    told: Mapping[str, Sequence[Sequence[Told]]],
    spaces: Sequence[str],
    oracle: Oracle | None,
) -> list[Failure]:
    """The worst samples, at most `NUM_WORST`: those that are not right, and among them, as among all without an oracle,
    those that are least like their prompts. How many attributes are wrong does not count: one mistake, such as two
    things that touch and are read as one, may make all of them wrong."""
    found: list[tuple[bool, Failure]] = []
    for name in [name for name in SETS if name in samples]:
        scores = _scores(measured, name, spaces)
        for i, prompt in enumerate(samples[name].prompts):
            wrong = {} if oracle is None else _wrong(measured[name]["checks"][i].tolist(), oracle)
            labels = [label for attribute, label in wrong.items() if oracle is None or attribute != oracle.main]
            read = [f"{what}: {value}, not {asked}" for what, asked, value in _of(told, name, i) if value != asked]
            is_right = oracle is not None and oracle.main not in wrong
            found.append((is_right, Failure(name, i, prompt.prompt, labels, read, float(f"{scores[i]:.6g}"))))
    found.sort(key=lambda each: (each[0], each[1].score))
    return [failure for _, failure in found[:NUM_WORST]]


def _scores(measured: Measured, name: str, spaces: Sequence[str]) -> list[float]:
    """`Failure.score` of every sample of a set."""
    own, real = measured[name], measured[REAL + name]
    features = features_in(OWN_CLIP if OWN_CLIP in spaces else spaces[0])
    sampled, true = own[features].double(), real[features].double()
    if OWN_CLIP in spaces:
        return ((sampled - true) * own["clip_text"].double()).sum(1).tolist()
    return (-torch.linalg.vector_norm(sampled - true, dim=1)).tolist()


def _wrong(codes: Sequence[int], oracle: Oracle) -> dict[str, str]:
    """Attributes with the code of a wrong one, and their labels, without stricter headlines than the main one."""
    named = zip(oracle.attributes, codes, strict=True)
    wrong = (name for name, code in named if code == WRONG and name not in oracle.headlines[1:])
    return {name: oracle.label(name) for name in wrong}


def _of(told: Mapping[str, Sequence[Sequence[Told]]], name: str, number: int) -> Sequence[Told]:
    return told[name][number] if name in told else ()


def picture(failures: Sequence[Failure], samples: Mapping[str, Samples], real: RealImages) -> "Image":
    """Each failure, above what was read or is wrong, beside the real image of its prompt, above the prompt."""
    cells: list[bytes] = []
    captions: list[str] = []
    for failure in failures:
        part = samples[failure.images]
        cells += [part.png(failure.number), real.png(real.origin(part.prompts[failure.number]))]
        captions += [f"{failure.images.replace('_', ' ')}: {_LIST.join(_summary(failure))}", f"real: {failure.prompt}"]
    return images.grid(images.planes(cells), NUM_COLUMNS, captions)


def _summary(failure: Failure) -> Sequence[str]:
    """What was read; or else what is wrong, or the score."""
    return failure.read or failure.wrong or [f"score {failure.score:.3g}"]


def write(folder: Path, failures: Sequence[Failure], counts: Mapping[tuple[str, str, str, str], int]) -> None:
    """Write both tables."""
    rows = [[f.images, f.number, f.prompt, _LIST.join(f.wrong), _LIST.join(f.read), f"{f.score:.6g}"] for f in failures]
    write_rows(folder / FAILURES, [_FAILURE_COLUMNS, *rows])
    write_rows(folder / CONFUSION, [_CONFUSION_COLUMNS, *((*key, counts[key]) for key in sorted(counts))])


def read_confusion(path: Path) -> dict[tuple[str, str, str, str], int]:
    """The counts that `write` wrote. IntegrityError: the file is missing, or not one of them."""

    def count(row: dict[str, str]) -> tuple[tuple[str, str, str, str], int]:
        return (row["images"], row["attribute"], row["asked"], row["read"]), int(row["num"])

    return dict(_read(path, _CONFUSION_COLUMNS, count))


def read_failures(path: Path) -> list[Failure]:
    """The failures that `write` wrote. IntegrityError: the file is missing, or not one of them."""

    def failure(row: dict[str, str]) -> Failure:
        wrong, read = ([part for part in row[name].split(_LIST) if part] for name in ("wrong", "read"))
        return Failure(row["set"], int(row["number"]), row["prompt"], wrong, read, float(row["score"]))

    return _read(path, _FAILURE_COLUMNS, failure)


def _read(path: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], Row]) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            found = f"columns {', '.join(reader.fieldnames or ())}"
            if tuple(reader.fieldnames or ()) == tuple(columns):
                return [parse(row) for row in reader]
    except (OSError, ValueError, TypeError, AttributeError) as error:  # the last two: of a row that is too short
        found = f"{type(error).__name__}: {error}"
    expected, fix = f"a table of {', '.join(columns)}", "run `dvc repro evaluate`"
    raise IntegrityError(str(path), found, expected, fix)
