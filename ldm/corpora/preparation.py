"""Pairs of any corpus -> image shards, caption shards, and an account of every sample seen."""

import csv
import hashlib
import heapq
import json
import math
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ldm.core import images
from ldm.core.progress import each
from ldm.core.shards import SPLITS, Split, Writer
from ldm.corpora import made
from ldm.corpora.made import Made, Sample
from ldm.corpora.pairs import Item, Rejection
from ldm.corpora.params import PrepareParams
from ldm.corpora.report import Report
from ldm.corpora.workers import ordered_map


def prepare(
    items: Iterable[Item],
    image_shards: Path,
    caption_shards: Path,
    results: Path,
    params: PrepareParams,
    num_workers: int,
) -> Report:
    """`write` what `make` makes, without keeping it for another run."""
    return write(make(items, params, num_workers), image_shards, caption_shards, results, params)


def make(
    items: Iterable[Item],
    params: PrepareParams,
    num_workers: int,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Generator[Made]:
    """Draw or clean the image of every item and encode it, in `num_workers` processes (0: this one); in order. It ends
    early once `is_stopped`."""
    function = partial(made.make, sizes_px=params.corpus.sizes_px(params.image_size_px))
    return ordered_map(function, items, num_workers, params.max_seconds_per_sample, made.lost, is_stopped)


def write(
    items: Iterable[Made],
    image_shards: Path,
    caption_shards: Path,
    results: Path,
    params: PrepareParams,
) -> Report:
    """Write shards of all splits, `rejected.jsonl`, `report.json`, its tables as CSVs, and `examples.png`.

    Of samples with equal keys the first is kept; the others are rejected as DUPLICATE_KEY.
    """
    report, examples = Report(), _Examples(params.num_examples)
    with ExitStack() as stack:
        writers: dict[Split, tuple[Writer, Writer]] = {
            split: (
                stack.enter_context(Writer(image_shards / split, params.num_samples_per_shard)),
                stack.enter_context(Writer(caption_shards / split, params.num_samples_per_shard)),
            )
            for split in SPLITS
        }
        rejected = stack.enter_context((results / "rejected.jsonl").open("w", encoding="utf-8"))
        for item in each(map(report.add, items), "prepare", "sample", None):
            if isinstance(item, Rejection):
                rejected.write(made.to_json(asdict(item)).decode() + "\n")
            if not isinstance(item, Sample):
                continue
            pictures, texts = writers[item.split]
            pictures.write(item.key, item.image_parts, item.group, item.size_px)
            texts.write(item.key, item.caption_parts, item.group, item.size_px)
            examples.add(item)
    report.compare()
    (results / "report.json").write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    for name, (columns, rows) in report.tables().items():
        with (results / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    examples.draw(results / "examples.png")
    return report


def write_passports(images: Path, captions: Path, params: PrepareParams) -> None:
    """Write the passports of both folders of shards. The one of the images says nothing about captions: a changed
    caption must leave every byte of that folder unchanged, or the autoencoder would be trained again."""
    from ldm.core import artifact

    sizes_px = params.corpus.sizes_px(params.image_size_px)
    image_settings: dict[str, Any] = {"image_size_px": params.image_size_px}
    if len(sizes_px) > 1:
        image_settings["buckets_px"] = sizes_px
    for kind, directory, settings in (
        ("images", images, image_settings),
        ("captions", captions, params.model_dump(mode="json")),
    ):
        splits = {split: artifact.sha256_file(directory / split / "index.json") for split in SPLITS}
        artifact.write_passport(
            directory, artifact.Kind(kind), settings, {}, {"splits": splits}, artifact.sha256_json(splits)
        )


class _Examples:
    """Some training samples, chosen by a hash of the key, so that a sorted corpus shows all its kinds."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._chosen: list[tuple[int, bytes, str]] = []
        """A heap: the one with the largest hash is first, and so the first to go."""

    def add(self, sample: Sample) -> None:
        """Keep a training sample if its hash is among the smallest."""
        if sample.split != "train":
            return
        rank = -int.from_bytes(hashlib.blake2b(sample.key.encode()).digest())
        if len(self._chosen) < self._count or rank > self._chosen[0][0]:
            entry = rank, next(iter(sample.image.values())), sample.captions[0]
            (heapq.heappush if len(self._chosen) < self._count else heapq.heapreplace)(self._chosen, entry)

    def draw(self, path: Path) -> None:
        """Draw the samples with their first captions; nothing if there are none."""
        ranked = sorted(self._chosen, reverse=True)
        if ranked:
            cells = images.planes(data for _, data, _ in ranked)
            images.grid(cells, math.ceil(math.sqrt(len(ranked))), [text for *_, text in ranked]).save(path)
