"""The account of a corpus: what was seen, what of it was accepted and what was rejected for which reason."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm.core.errors import RejectedError
from ldm.core.shards import SPLITS, Split
from ldm.corpora import likeness
from ldm.corpora.likeness import Likeness
from ldm.corpora.made import Made, Sample
from ldm.corpora.pairs import ASPECT, REPEAT, SIDE, Litter, Rejection

_FEW = 1 << 20
_NUM_PAIRS = 1000
MOST_BITS = 4
"""Of 64 in which the perceptual hashes of two pictures differ that look the same: what saving one again changes."""
_PLACES = ("file", "tar", "table")
"""Where a sample is from, by what the `source` of a corpus calls it."""


class Distinct:
    """A set of texts in 8 bytes each. Two texts are taken for one with a probability of 2^-64 per pair."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def add(self, text: str) -> bool:
        """Add a text, and say whether it is new."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest)
        place = int(np.searchsorted(self._sorted, np.uint64(number)))
        is_old = place < len(self._sorted) and int(self._sorted[place]) == number
        if is_old or number in self._recent:
            return False
        self._recent.add(number)
        # A Python set takes eight times as much, so it holds only the newest.
        if len(self._recent) == _FEW:
            self._sorted = np.union1d(self._sorted, np.array(sorted(self._recent), np.uint64))
            self._recent.clear()
        return True

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)


@dataclass
class SplitReport:
    """Counts of one split."""

    num_samples: int = 0
    num_captions: int = 0
    caption_words: Counter[int] = field(default_factory=Counter[int])
    """How many captions have a number of words."""
    longest_caption: str = ""
    """The first caption with the most words."""
    captions: Distinct = field(default_factory=Distinct)
    """A CLIP trained on them can tell only distinct ones apart."""
    pixels: Distinct = field(default_factory=Distinct)
    """Hashes of pictures whose split depends on what they show, without repeats of a mixture."""
    looks: "array[int]" = field(default_factory=lambda: array("Q"))
    """Perceptual hashes of those of them that differ."""
    keys: bytearray = field(default_factory=bytearray)
    """Their keys, a line each: a list of strings would take three times as much."""

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        self.num_samples += 1
        for caption in sample.captions:
            self.num_captions += 1
            self.captions.add(caption)
            self.caption_words[len(caption.split())] += 1
            self.longest_caption = max(self.longest_caption, caption, key=lambda text: len(text.split()))

    def add_look(self, key: str, hashes: Likeness) -> bool:
        """Keep the hash of a picture for comparisons, and say whether the picture is new."""
        if not self.pixels.add(hashes.pixels):
            return False
        self.looks.append(int(hashes.looks, 16))
        self.keys += f"{key}\n".encode()
        return True

    def keys_at(self, places: Iterable[int]) -> list[str]:
        """Keys by their places among `looks`."""
        ends = np.flatnonzero(np.frombuffer(self.keys, np.uint8) == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        return [self.keys[starts[place] : ends[place]].decode() for place in places]


@dataclass
class Report:
    """Account of a corpus: every sample seen is in one split or rejected for one reason."""

    num_rejected: Counter[str] = field(default_factory=Counter[str])
    """By reason."""
    first_rejected: dict[str, str] = field(default_factory=dict[str, str])
    """One example of each reason."""
    pictures: Counter[str] = field(default_factory=Counter[str])
    """How many accepted pictures had a format, or needed a conversion: the `notes` of `Picture`."""
    splits: dict[Split, SplitReport] = field(default_factory=lambda: {split: SplitReport() for split in SPLITS})
    keys: Distinct = field(default_factory=Distinct)
    """Of accepted samples."""
    num_equal: int = 0
    """How many pictures are equal to an earlier one of their split, but for repeats of a mixture."""
    alike: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])
    """Keys of samples of one split that look alike, and the bits in which their hashes differ: `_NUM_PAIRS` at most,
    the nearest earlier one beside each."""
    num_alike: int = 0
    """How many samples look like an earlier one of their split, and are not equal to it."""
    without_sample: Counter[str] = field(default_factory=Counter[str])
    """Files of the corpus that hold no sample, by suffix."""
    across: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])
    """Keys of training and validation samples that look alike, and the bits in which their hashes differ."""

    @property
    def num_seen(self) -> int:
        """Samples in all."""
        return sum(split.num_samples for split in self.splits.values()) + self.num_rejected.total()

    def add(self, item: Made) -> Made:
        """Count an item. Of samples with equal keys the first is accepted; another one comes back as a rejection."""
        if isinstance(item, Sample) and not self.keys.add(item.key):
            detail = f"an earlier sample has this key, or its split {item.split} has"
            item = Rejection(item.key, "DUPLICATE_KEY", detail, item.source)
        if isinstance(item, Litter):
            self.without_sample.update(item.counts)
        elif isinstance(item, Rejection):
            self.num_rejected[item.reason] += 1
            self.first_rejected.setdefault(item.reason, _described(item))
        else:
            self.splits[item.split].add(item)
            self.pictures.update(item.notes)
            if item.likeness is not None and REPEAT not in item.notes:
                self.num_equal += not self.splits[item.split].add_look(item.key, item.likeness)
        return item

    def compare(self) -> None:
        """Find pictures that look alike: their perceptual hashes differ in `MOST_BITS` at most. Those with equal hashes
        are in one split of a corpus; others, and equal ones of several corpora of a mixture, may be in training and
        validation, and `across` lists them.
        """
        for split in self.splits.values():
            places, bits = likeness.nearest_before(np.array(split.looks, np.uint64), MOST_BITS)
            found = np.flatnonzero(places >= 0)
            self.num_alike += len(found)
            found = found[: _NUM_PAIRS - len(self.alike)]
            pairs = split.keys_at(places[found].tolist()), split.keys_at(found.tolist()), bits[found].tolist()
            self.alike += zip(*pairs, strict=True)
        train, val = self.splits["train"], self.splits["val"]
        looks, others = (np.array(split.looks, np.uint64) for split in (train, val))
        places, bits = likeness.nearest(looks, others, MOST_BITS)
        found = np.flatnonzero(places >= 0)
        pairs = train.keys_at(places[found].tolist()), val.keys_at(found.tolist()), bits[found].tolist()
        self.across = list(zip(*pairs, strict=True))

    def check(self, max_reject_fraction: float, rejected_file: Path) -> None:
        """Refuse a corpus with too few usable samples.

        Raises:
            RejectedError: more than the fraction is rejected, or nothing is left to train on or to validate with.
        """
        total = self.num_rejected.total()
        if total > max_reject_fraction * self.num_seen:
            reasons = [f"{reason} {n} ({self.first_rejected[reason]})" for reason, n in self.num_rejected.most_common()]
            found = f"{total} of {self.num_seen} samples rejected: {', '.join(reasons)}"
            fix = f"see {rejected_file}; repair or remove the samples, or raise prepare.max_reject_fraction"
            raise RejectedError("prepare", found, f"at most a fraction of {max_reject_fraction}", fix)
        for split in ("train", "val"):
            if not self.splits[split].num_samples:
                found = f"no sample of {self.num_seen - total} is in split {split}"
                fix = "add images, or change prepare.corpus.val_fraction"
                raise RejectedError("prepare", found, "at least one", fix)

    def to_json(self) -> dict[str, Any]:
        """What `report.json` holds."""
        return {
            "num_seen": self.num_seen,
            "num_rejected": self.num_rejected.total(),
            "rejected": dict(sorted(self.num_rejected.items())),
            "pictures": {name: self.pictures[name] for name in sorted(self.pictures) if "=" not in name},
            "num_equal_pictures": self.num_equal,
            "num_near_duplicates": self.num_alike,
            "num_near_duplicates_across_splits": len(self.across),
            "files_without_sample": dict(self.without_sample.most_common()),
            "splits": {name: _printable(split) for name, split in self.splits.items()},
        }

    def tables(self) -> dict[str, tuple[tuple[str, ...], Sequence[tuple[Any, ...]]]]:
        """What the CSVs beside `report.json` hold, by name: columns and rows. Counts are of accepted samples, over all
        splits."""
        words = sum((split.caption_words for split in self.splits.values()), Counter[int]())
        return {
            "sides": (("shorter_side_px", "pictures"), self._counted(SIDE)),
            "aspects": (("longer_over_shorter", "pictures"), self._counted(ASPECT)),
            "caption_words": (("words", "captions"), sorted(words.items())),
            "rejected": (("reason", "samples"), self.num_rejected.most_common()),
            "near_duplicates": (("first", "alike", "bits"), self.alike),
            "near_duplicates_across_splits": (("train", "val", "bits"), self.across),
        }

    def _counted(self, prefix: str) -> list[tuple[float, int]]:
        found = {name.removeprefix(prefix): n for name, n in self.pictures.items() if name.startswith(prefix)}
        return sorted((float(value), count) for value, count in found.items())


def _described(item: Rejection) -> str:
    """Key, file and what is wrong; decoders know only the bytes, so they name no file."""
    place = next((str(item.source[name]) for name in _PLACES if name in item.source), "")
    return f"{item.key}: {item.detail if not place or place in item.detail else f'{place}: {item.detail}'}"


def _printable(split: SplitReport) -> dict[str, Any]:
    words = split.caption_words
    return {
        "num_samples": split.num_samples,
        "num_captions": split.num_captions,
        "num_distinct_captions": len(split.captions),
        "max_caption_words": max(words, default=0),
        "longest_caption": split.longest_caption,
        "caption_words": {str(length): words[length] for length in sorted(words)},
    }
