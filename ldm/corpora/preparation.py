"""Pairs of any corpus -> image shards, caption shards, and an account of every sample seen."""

import hashlib
import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np

from ldm.core import images
from ldm.core.errors import RejectedError
from ldm.core.progress import each
from ldm.core.shards import SPLITS, Shards, Split, Writer
from ldm.corpora.pairs import Pair, Rejected, Rejection
from ldm.corpora.params import PrepareParams

T = TypeVar("T")
R = TypeVar("R")
_CHUNK = 64


@dataclass
class SplitReport:
    """Counts of one split."""

    num_samples: int = 0
    num_captions: int = 0
    caption_words: Counter[int] = field(default_factory=Counter[int])
    """How many captions have a number of words."""
    longest_caption: str = ""
    """The first caption with the most words."""
    hashes: set[int] = field(default_factory=set[int])
    """Hashes of the captions: a CLIP trained on them can tell only distinct ones apart."""

    def add(self, captions: Iterable[str]) -> None:
        """Count one sample."""
        self.num_samples += 1
        for caption in captions:
            self.num_captions += 1
            self.hashes.add(hash(caption))
            self.caption_words[len(caption.split())] += 1
            self.longest_caption = max(self.longest_caption, caption, key=lambda text: len(text.split()))


@dataclass
class Report:
    """Account of a corpus: every sample seen is in one split or rejected for one reason."""

    num_seen: int = 0
    num_rejected: Counter[str] = field(default_factory=Counter[str])
    """By reason."""
    first_rejected: dict[str, str] = field(default_factory=dict[str, str])
    """One example of each reason."""
    splits: dict[Split, SplitReport] = field(default_factory=lambda: {split: SplitReport() for split in SPLITS})

    def reject(self, rejection: Rejection) -> None:
        """Count one rejected sample."""
        self.num_rejected[rejection.reason] += 1
        self.first_rejected.setdefault(rejection.reason, f"{rejection.key}: {rejection.detail}")

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


def prepare(
    items: Iterable[Pair | Rejection],
    image_shards: Path,
    caption_shards: Path,
    results: Path,
    params: PrepareParams,
    num_workers: int,
) -> Report:
    """Write shards of all splits, `rejected.jsonl`, `report.json` and `examples.png`.

    The bytes written do not depend on `num_workers`, the number of processes that render or decode (0: this one).
    Of samples with equal keys the first is kept; the others are rejected as DUPLICATE_KEY.
    """
    report = Report()
    seen: set[str] = set()
    with ExitStack() as stack:
        writers: dict[Split, tuple[Writer, Writer]] = {
            split: (
                stack.enter_context(Writer(image_shards / split, params.num_samples_per_shard)),
                stack.enter_context(Writer(caption_shards / split, params.num_samples_per_shard)),
            )
            for split in SPLITS
        }
        rejected = stack.enter_context((results / "rejected.jsonl").open("w", encoding="utf-8"))
        make = partial(_make, size_px=params.image_size_px)
        made = ordered_map(make, _counted(items, report), num_workers)
        for item in each(made, "prepare", "sample", None):
            if isinstance(item, _Sample) and item.key not in seen:
                seen.add(item.key)
                report.splits[item.split].add(item.captions)
                for writer, parts in zip(writers[item.split], (item.image_parts, item.caption_parts), strict=True):
                    writer.write(item.key, parts, item.group)
                continue
            rejection = item if isinstance(item, Rejection) else item.as_duplicate()
            report.reject(rejection)
            rejected.write(_json(asdict(rejection)).decode() + "\n")
    num_accepted = sum(split.num_samples for split in report.splits.values())
    assert num_accepted + report.num_rejected.total() == report.num_seen, "a sample is unaccounted for"
    (results / "report.json").write_text(json.dumps(_printable(report), indent=1) + "\n", encoding="utf-8")
    _draw_examples(image_shards / "train", caption_shards / "train", results / "examples.png", params.num_examples)
    return report


def write_passports(images: Path, captions: Path, params: PrepareParams) -> None:
    """Write the passports of both folders of shards. The one of the images says nothing about captions: a changed
    caption must leave every byte of that folder unchanged, or the autoencoder would be trained again."""
    from ldm.core import artifact

    image_settings = {"corpus": params.corpus.kind, "image_size_px": params.image_size_px}
    for kind, directory, settings in (
        ("images", images, image_settings),
        ("captions", captions, params.model_dump(mode="json")),
    ):
        splits = {split: Shards(directory / split, verify=False).sha256 for split in SPLITS}
        artifact.write_passport(
            directory, artifact.Kind(kind), settings, {}, {"splits": splits}, artifact.sha256_json(splits)
        )


def ordered_map(function: Callable[[T], R], items: Iterable[T], num_workers: int) -> Iterator[R]:
    """`map` over worker processes: results in the order of the items, a few chunks of which are in memory at a time."""
    if num_workers == 0:
        yield from map(function, items)
        return
    iterator = iter(items)
    waiting: deque[Future[list[R]]] = deque()
    with ProcessPoolExecutor(num_workers, initializer=_end_with_parent) as pool:
        while chunk := list(islice(iterator, _CHUNK)):
            waiting.append(pool.submit(_map_chunk, function, chunk))
            if len(waiting) > 2 * num_workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _end_with_parent() -> None:
    """End a worker with its parent: else it would wait for work for ever, and hold the locks that it inherited."""
    parent = parent_process()
    assert parent is not None, "a worker has a parent"

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class _Sample:
    """A finished pair: what goes into the shards."""

    key: str
    split: Split
    captions: list[str]
    source: dict[str, Any]
    group: str
    image_parts: dict[str, bytes]
    caption_parts: dict[str, bytes]

    def as_duplicate(self) -> Rejection:
        return Rejection(self.key, "DUPLICATE_KEY", f"{self.split} has this key already", self.source)


def _make(item: Pair | Rejection, size_px: int) -> _Sample | Rejection:
    if isinstance(item, Rejection):
        return item
    try:
        image = item.image() if callable(item.image) else item.image
    except Rejected as error:
        return Rejection(item.key, error.reason, error.detail, item.source)
    assert image.shape == (size_px, size_px, 3), f"{item.key}: {image.shape}"
    assert 0 < len(item.captions) == len(item.claims), f"{item.key}: {item.captions} {item.claims}"
    return _Sample(
        key=item.key,
        split=item.split,
        captions=item.captions,
        source=item.source,
        group=item.group,
        image_parts={"json": _json({"scene": item.scene, "source": item.source}), "png": images.encode_png(image)},
        caption_parts={"json": _json({"captions": item.captions, "claims": item.claims})},
    )


def _map_chunk(function: Callable[[T], R], chunk: list[T]) -> list[R]:
    return [function(item) for item in chunk]


def _counted(items: Iterable[T], report: Report) -> Iterator[T]:
    for item in items:
        report.num_seen += 1
        yield item


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _printable(report: Report) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for name, split in report.splits.items():
        words = split.caption_words
        splits[name] = {
            "num_samples": split.num_samples,
            "num_captions": split.num_captions,
            "num_distinct_captions": len(split.hashes),
            "max_caption_words": max(words, default=0),
            "longest_caption": split.longest_caption,
            "caption_words": {str(length): words[length] for length in sorted(words)},
        }
    return {
        "num_seen": report.num_seen,
        "num_rejected": report.num_rejected.total(),
        "rejected": dict(sorted(report.num_rejected.items())),
        "splits": splits,
    }


def _draw_examples(image_shards: Path, caption_shards: Path, path: Path, count: int) -> None:
    """Draw training samples, chosen by hash, so that a sorted corpus shows all its kinds."""
    pictures, texts = Shards(image_shards), Shards(caption_shards)
    ranked = sorted(range(len(pictures)), key=lambda i: hashlib.blake2b(pictures.keys[i].encode()).digest())[:count]
    if not ranked:
        return
    cells = np.stack([images.decode_png(pictures[i]["png"]) for i in ranked]).transpose(0, 3, 1, 2)
    captions = [json.loads(texts[i]["json"])["captions"][0] for i in ranked]
    images.grid(cells, math.ceil(math.sqrt(len(ranked))), captions).save(path)
