"""Buckets: which shapes there are, which part of a picture is kept, which samples the batch of a step holds."""

import io
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ldm import randomness
from ldm.core import shards
from ldm.core.buckets import Buckets
from ldm.core.images import encode_png
from ldm.corpora import framing
from ldm.corpora import pixels as decoding
from ldm.corpora.params import PrepareParams
from ldm.corpora.pixels_params import BucketsParams, SquareParams
from ldm.randomness import Order
from tests.corpora import FOLDER, PIXELS

SQUARE = SquareParams(kind="square", crop="centre")


def buckets_of(step_px: int, max_aspect_ratio: float, crop: Literal["centre", "random"] = "centre") -> BucketsParams:
    return BucketsParams(kind="buckets", step_px=step_px, max_aspect_ratio=max_aspect_ratio, crop=crop)


@pytest.mark.parametrize(
    ("size_px", "step_px", "max_aspect_ratio", "expected"),
    [
        (32, 8, 2, [(40, 24), (32, 32), (24, 40)]),
        (256, 64, 2, [(320, 192), (256, 256), (192, 320)]),
        (64, 16, 1, [(64, 64)]),
        (512, 64, 2, [(640, 384), (576, 448), (512, 512), (448, 576), (384, 640)]),
    ],
)
def test_buckets_are_multiples_of_the_step_with_at_most_the_pixels_of_the_square(
    size_px: int, step_px: int, max_aspect_ratio: float, expected: list[tuple[int, int]]
) -> None:
    found = buckets_of(step_px, max_aspect_ratio).sizes_px(size_px)
    assert found == expected
    assert sorted((width, height) for height, width in found) == sorted(found), "as many tall ones as wide ones"


def test_the_square_must_be_a_bucket() -> None:
    with_buckets = FOLDER.model_copy(update={"pixels": PIXELS.model_copy(update={"framing": buckets_of(24, 2)})})
    common: dict[str, Any] = {"captions": "corpus", "image_size_px": 32, "num_samples_per_shard": 5}
    common |= {"max_reject_fraction": 0, "num_examples": 1, "max_seconds_per_sample": 60}
    assert PrepareParams(corpus=FOLDER, **common)
    with pytest.raises(ValidationError, match="image_size_px 32 is not a multiple of"):
        PrepareParams(corpus=with_buckets, **common)


def test_a_picture_goes_to_the_nearest_shape() -> None:
    sizes = buckets_of(8, 2).sizes_px(32)
    shapes = {
        (100, 100): (32, 32),
        (100, 120): (32, 32),
        (100, 150): (24, 40),
        (150, 100): (40, 24),
        (90, 900): (24, 40),
    }
    assert {shape: framing.nearest(shape, sizes) for shape in shapes} == shapes
    # The border between two shapes is where both ratios are equally far: sqrt(40 / 24).
    border = (40 / 24) ** 0.5
    assert framing.nearest((1000, int(1000 * border)), sizes) == (32, 32)
    assert framing.nearest((1000, int(1000 * border) + 1), sizes) == (24, 40)


def test_the_largest_part_of_that_shape_is_kept() -> None:
    """A picture of 40 x 100 px whose columns are numbered: 40 x 66.7 px are kept for a shape of 24 x 40."""
    columns = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (40, 1, 3))
    found = framing.resized(columns, "area", (24, 40))
    assert found.shape == (24, 40, 3) and (found == found[:1]).all()
    step = 40 * 40 / 24 / 40  # columns of the picture for each of the image
    centres = (100 - 40 * 40 / 24) / 2 + step * (np.arange(40) + 0.5) - 0.5
    assert np.abs(found[0, :, 0] - centres).max() <= 1
    first, last = (framing.resized(columns, "area", (24, 40), place)[0, :, 0] for place in (0.0, 1.0))
    assert first[0] <= 1 and last[-1] >= 98 and last[0] > found[0, 0, 0] > first[0]
    rows = columns.transpose(1, 0, 2)
    assert (framing.resized(rows, "area", (40, 24)) == found.transpose(1, 0, 2)).all()


@pytest.mark.parametrize("shape", [(31, 64), (64, 31), (65, 65), (100, 99)])
def test_a_square_in_the_middle_is_what_it_always_was(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    side, image = min(shape), Image.fromarray(pixels)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = left, top, left + side, top + side
    expected = image.resize((24, 24), Image.Resampling.LANCZOS, box=box)
    assert (framing.framed(pixels, SQUARE, "lanczos", 24, b"") == np.asarray(expected)).all()


def test_a_random_crop_depends_on_the_file_alone_and_reaches_all_places() -> None:
    columns = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (20, 1, 3))
    places: list[int] = []
    for number in range(40):
        stream = io.BytesIO()
        Image.fromarray(np.clip(columns + number % 2, 0, 255)).save(stream, "PNG", dpi=(number + 1, 1))
        params = PIXELS.model_copy(
            update={"framing": SquareParams(kind="square", crop="random"), "max_aspect_ratio": 20}
        )
        one, again = (decoding.clean(stream.getvalue(), params, 20).pixels for _ in range(2))
        assert (one == again).all()
        places.append(int(one[0, 0, 0]))
    assert len(set(places)) > 20 and min(places) < 40 and max(places) > 140 and 70 < np.mean(places) < 110


def write(folder: Path, sizes: list[tuple[int, int]], groups: list[str] | None = None) -> shards.Shards:
    with shards.Writer(folder, 4) as writer:
        for number, size in enumerate(sizes):
            png = encode_png(np.full((*size, 3), number, np.uint8))
            writer.write(f"{number:03d}", {"png": png}, groups[number] if groups else "", size)
    return shards.Shards(folder)


def test_a_shard_holds_one_size_and_says_which(tmp_path: Path) -> None:
    sizes = [(8, 16), (16, 8), (8, 16), (8, 8)] * 5
    split = write(tmp_path, sizes)
    assert sorted(split.keys) == [f"{number:03d}" for number in range(20)], "every sample once"
    index = json.loads((tmp_path / "index.json").read_text())
    tall, even, wide = [16, 8], [8, 8], [8, 16]
    assert [shard["size_px"] for shard in index["shards"]] == [wide, tall, even, wide, wide, tall, even]
    for number, shard in enumerate(index["shards"]):
        found = {split.images([sample]).shape[2:] for sample in split.shard_samples(number)}
        assert found == {tuple(shard["size_px"])}
        numbers = [int(split.keys[sample]) for sample in split.shard_samples(number)]
        assert numbers == sorted(numbers), "in the order they came"
    assert split.buckets.sizes_px == split.image_sizes_px == [(16, 8), (8, 8), (8, 16)]
    assert split.buckets.counts.tolist() == [5, 5, 10]
    for bucket, size in enumerate(split.image_sizes_px):
        members = split.buckets.samples(bucket, np.arange(split.buckets.counts[bucket]))
        assert {sizes[int(split.keys[sample])] for sample in members.tolist()} == {size}
        assert (split.buckets.of(members) == bucket).all()


def test_a_group_ends_the_shard_of_each_size(tmp_path: Path) -> None:
    groups = ["a"] * 6 + ["b"] * 4
    split = write(tmp_path, [(8, 16), (16, 8)] * 5, groups)
    together = [{groups[int(split.keys[i])] for i in split.shard_samples(shard)} for shard in range(split.num_shards)]
    assert all(len(names) == 1 for names in together)


def test_a_split_of_one_size_is_written_as_ever(tmp_path: Path) -> None:
    shards.write(tmp_path, [(f"{i}", {"json": b"{}"}) for i in range(3)], 2)
    assert "size_px" not in (tmp_path / "index.json").read_text()
    buckets = shards.Shards(tmp_path).buckets
    assert len(buckets) == 1 and buckets.samples(0, np.arange(3)).tolist() == [0, 1, 2]
    assert [batch.tolist() for batch in buckets.batches(3, 2)] == [[0, 1], [2]]


MIXED = Buckets([(8, 16), (16, 8), None, (8, 16), (16, 8)], [5, 3, 7, 4, 1])


def test_first_samples_have_the_shares_of_their_buckets() -> None:
    batches = MIXED.batches(10, 3)
    owners = [set(MIXED.of(batch).tolist()) for batch in batches]
    assert all(len(owner) == 1 for owner in owners) and max(map(len, batches)) <= 3
    counts = Counter(int(bucket) for batch in batches for bucket in MIXED.of(batch))
    assert sum(counts.values()) == 10
    assert all(abs(counts[bucket] - 10 * count / 20) < 1 for bucket, count in enumerate(MIXED.counts.tolist()))
    everything = np.concatenate(MIXED.batches(100, 6))
    assert sorted(everything.tolist()) == list(range(20))


def test_one_bucket_is_the_order_of_the_whole_split() -> None:
    order, positions = Order(Buckets([None, None], [40, 13]), 8, 3), np.arange(8)
    for step in (0, 5, 6, 1000):
        draw = order.at_step(step)
        assert (draw.samples == randomness.order(step * 8 + positions, 53, 3)).all()
        assert (draw.epochs == (step * 8 + positions) // 53).all()


@pytest.mark.parametrize("counts", [[5, 3, 7], [64, 8, 16], [1, 1, 200], [1000, 1], [2, 3]])
@pytest.mark.parametrize("batch_size", [1, 4, 8, 50])
def test_a_batch_has_one_bucket_and_every_sample_comes_once_per_epoch(counts: list[int], batch_size: int) -> None:
    sizes = [(8 * (i + 1), 8) for i in range(len(counts))]
    buckets, num_epochs = Buckets(sizes, counts), 4
    order = Order(buckets, batch_size, seed=1)
    num_steps = sum(-(-num_epochs * count // batch_size) for count in buckets.counts.tolist())
    drawn, of_bucket = list[tuple[int, int]](), Counter[int]()
    for step in range(num_steps):
        draw = order.at_step(step)
        assert (buckets.of(draw.samples) == draw.bucket).all() and len(draw.samples) == batch_size
        drawn += zip(draw.samples.tolist(), draw.epochs.tolist(), strict=True)
        of_bucket[draw.bucket] += 1
    assert len(set(drawn)) == len(drawn), "no sample twice in an epoch"
    for bucket, count in enumerate(buckets.counts.tolist()):
        members = set(buckets.samples(bucket, np.arange(count)).tolist())
        own = {(sample, epoch) for sample, epoch in drawn if sample in members}
        whole = {(sample, epoch) for sample, epoch in own if epoch < num_epochs}
        assert len(whole) == count * num_epochs, "every sample in every epoch"
        assert len(own) - len(whole) < batch_size, "but for the last batch"
        assert of_bucket[bucket] == -(-num_epochs * count // batch_size), "as often as it has samples"


def test_the_order_is_a_pure_function_of_seed_and_step() -> None:
    buckets = Buckets([(8, 8), (8, 16), (16, 8)], [50, 30, 20])
    order, steps = Order(buckets, 5, 0), list(range(60))
    forwards = [order.at_step(step) for step in steps]
    backwards = [Order(buckets, 5, 0).at_step(step) for step in reversed(steps)][::-1]
    assert all((one.samples == other.samples).all() for one, other in zip(forwards, backwards, strict=True))
    assert [draw.bucket for draw in forwards[:20]] != [draw.bucket for draw in forwards[20:40]], "each epoch its own"
    other = [Order(buckets, 5, 1).at_step(step).bucket for step in steps]
    assert other != [draw.bucket for draw in forwards]
    runs = sum(one.bucket != two.bucket for one, two in pairwise(forwards))
    assert runs > 25, "buckets alternate"


def test_the_order_of_ten_million_samples_costs_nothing() -> None:
    order = Order(Buckets([(8, 8), (8, 16), (16, 8)], [7_000_001, 2_000_003, 999_999]), 2048, 0)
    assert order.at_step(10**7).epochs.min() >= 2000
