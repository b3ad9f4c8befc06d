"""The numbers of an evaluation in words: shares that are right, distances, controls, and what is taken for what."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ldm.core.errors import IntegrityError
from ldm.evaluation.mistakes import REAL_IMAGES, SAMPLES
from ldm.evaluation.spaces import CLIP_SCORE, CMMD, DISTANCES, label
from ldm.evaluation.tables import SCORES

Numbers = Mapping[str, float | int | str]
_MOST_VALUES = 24
"""Values of an attribute up to which its matrix is shown; of more, only what is mistaken most."""
_NUM_PAIRS = 8


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval, and of how many images it is."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return _percent(self.value)

    @property
    def interval(self) -> str:
        """The interval in words, in per cent."""
        return f"{100 * self.low:.1f} to {100 * self.high:.1f}"


@dataclass(frozen=True)
class Score:
    """What may be right about an image, and how often it is."""

    name: str
    samples: Share
    real: Share | None
    round_trips: Share | None


@dataclass(frozen=True)
class Confusion:
    """What samples show where a value of one attribute was asked for."""

    attribute: str
    asked: Sequence[str]
    read: Sequence[str]
    counts: Mapping[tuple[str, str], int]
    """(asked, read) -> number, of samples."""
    right: str
    """How many are right in samples and in real images, in words."""

    def share(self, asked: str, read: str) -> float:
        """Among the images that were asked for a value, those that show another one."""
        return self.counts.get((asked, read), 0) / sum(self.counts.get((asked, other), 0) for other in self.read)

    @property
    def is_small(self) -> bool:
        """Whether the matrix fits on a page."""
        return max(len(self.asked), len(self.read)) <= _MOST_VALUES

    @property
    def most(self) -> list[str]:
        """What is mistaken most often, in words."""
        wrong = sorted(
            (pair for pair in self.counts if pair[0] != pair[1]), key=lambda pair: (-self.counts[pair], pair)
        )
        return [
            f"{asked} shown as {read}: {self.counts[asked, read]} times, {_percent(self.share(asked, read))}"
            for asked, read in wrong[:_NUM_PAIRS]
        ]


def read(folder: Path) -> dict[str, list[Score]]:
    """Set -> its scores, in the order of the table that stage `evaluate` wrote; empty if nothing says what is right.

    IntegrityError: the table is missing, or of a former commit.
    """
    path = folder / SCORES
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        shares = {(row["set"], row["score"], row["images"]): _share(row) for row in rows}
    except (OSError, KeyError, ValueError) as error:
        expected, fix = "the table that stage evaluate writes", "run `dvc repro evaluate`"
        raise IntegrityError(str(path), f"{type(error).__name__}: {error}", expected, fix) from error
    found: dict[str, list[Score]] = {}
    for name, score in dict.fromkeys((name, score) for name, score, _ in shares):
        of = [shares.get((name, score, images)) for images in ("samples", "real images", "round trips")]
        if of[0] is not None:
            found.setdefault(name, []).append(Score(score, of[0], of[1], of[2]))
    return found


def distances(numbers: Numbers, sets: Sequence[str], spaces: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Rows of a table: what is measured, set, of the samples, of the real images of the same prompts."""
    kinds = {label(distance, space): f"{distance}_{space}_{{}}" for distance in DISTANCES for space in spaces}
    for what, pattern in (kinds | {CMMD: "cmmd_{}"}).items():
        for name in sets:
            key = pattern.format(name)
            if key in numbers:
                yield what, _words(name), _with_spread(numbers, key), _with_spread(numbers, f"{key}_floor")
    for name in sets:
        if f"own_clip_score_margin_{name}" in numbers:
            own, real = (f"own_clip_score_margin_{prefix}{name}" for prefix in ("", "real_"))
            yield CLIP_SCORE, _words(name), _with_bounds(numbers, own), _with_bounds(numbers, real)


def controls(numbers: Numbers, accuracy: Mapping[str, object]) -> list[tuple[str, str]]:
    """What the scores would be of images that are known to be right, or wrong: (in words, share)."""
    named = {
        "oracle_real": "Real images, judged by their own captions",
        "oracle_reconstructed": "Real images after a round trip through the autoencoder",
        "oracle_shuffled": "Real images, judged by the captions of others",
    }
    found = [(words, _percent(float(numbers[name]))) for name, words in named.items() if name in numbers]
    if "num_retrieval_images" in numbers and isinstance(k := accuracy.get("k"), int):
        count = int(numbers["num_retrieval_images"])
        found.append((f"By chance: the nearest {k} of {count} real images are looked at", f"{100 * k / count:.3g} %"))
    return found


def confusions(counts: Mapping[tuple[str, str, str, str], int]) -> list[Confusion]:
    """A matrix per attribute, from the counts of `mistakes.confusion`."""
    found: list[Confusion] = []
    for attribute, _ in groupby(sorted(counts, key=lambda key: key[1]), key=lambda key: key[1]):
        pairs = {key[2:]: number for key, number in counts.items() if key[:2] == (SAMPLES, attribute)}
        real = {key[2:]: number for key, number in counts.items() if key[:2] == (REAL_IMAGES, attribute)}
        if pairs:
            asked = sorted({asked for asked, _ in pairs})
            shown = [*asked, *sorted({read for _, read in pairs} - set(asked))]
            right = f"{_right(pairs)} are right in samples"
            right += f", and {_right(real)} in real images" if real else ""
            found.append(Confusion(attribute, asked, shown, pairs, right))
    return found


def _right(pairs: Mapping[tuple[str, ...], int]) -> str:
    right = sum(number for (asked, read), number in pairs.items() if asked == read)
    return f"{right} of {sum(pairs.values())} ({_percent(right / sum(pairs.values()))})"


def _share(row: Mapping[str, str]) -> Share:
    return Share(float(row["value"]), float(row["low"]), float(row["high"]), int(row["num_images"]))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _with_spread(numbers: Numbers, key: str) -> str:
    spread = f" ± {float(numbers[f'{key}_std']):.2g}" if f"{key}_std" in numbers else ""
    return f"{float(numbers[key]):.4g}{spread}"


def _with_bounds(numbers: Numbers, key: str) -> str:
    return f"{float(numbers[key]):.3f} ({float(numbers[f'{key}_low']):.3f} to {float(numbers[f'{key}_high']):.3f})"
