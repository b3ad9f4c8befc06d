import json
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ldm.core import images
from ldm.core.errors import RejectedError
from ldm.core.shards import Shards
from ldm.corpora import preparation
from ldm.corpora.pairs import Pair, Picture, Rejected, Rejection
from ldm.corpora.params import PrepareParams
from tests.corpora import FOLDER

PARAMS = PrepareParams(
    corpus=FOLDER,
    captions="corpus",
    image_size_px=8,
    num_samples_per_shard=50,
    max_seconds_per_sample=20,
    max_reject_fraction=0.1,
    num_examples=9,
)


def _paint(number: int) -> np.ndarray:
    if number % 25 == 24:
        raise Rejected("BROKEN", f"number {number}")
    return np.full((8, 8, 3), number % 256, np.uint8)


def _item(number: int) -> Pair | Rejection:
    source = {"corpus": "test", "number": number}
    if number % 50 == 3:
        return Rejection(f"k{number}", "MISSING_CAPTION", "none", source)
    split = ("train", "train", "val", "train", "held_out")[number % 5]
    captions = [f"{'a ' * (number % 4)}caption {number}", "\u00e4 second"]
    scene = {"number": number}
    return Pair(f"k{number}", partial(_paint, number), captions, [{"count": number}, None], scene, split, source)


def _prepare(root, items, num_workers=0, params=PARAMS):
    for name in ("images", "captions", "results"):
        (root / name).mkdir(parents=True)
    return preparation.prepare(items, root / "images", root / "captions", root / "results", params, num_workers)


def _files(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_shards_hold_every_accepted_pair_under_equal_keys(tmp_path):
    _prepare(tmp_path, map(_item, range(400)))
    for split in ("train", "val", "held_out"):
        pictures, texts = Shards(tmp_path / "images" / split), Shards(tmp_path / "captions" / split)
        pairs = [item for item in map(_item, range(400)) if isinstance(item, Pair) and item.split == split]
        numbers = [pair.source["number"] for pair in pairs if pair.source["number"] % 25 != 24]
        assert pictures.keys == texts.keys == [f"k{number}" for number in numbers]
        for i, number in enumerate(numbers):
            assert np.array_equal(images.decode(pictures.image(i)), _paint(number))
            assert json.loads(pictures[i]["json"]) == {
                "scene": {"number": number},
            }
            assert json.loads(texts[i]["json"]) == {
                "captions": _item(number).captions,
                "claims": [{"count": number}, None],
                "source": {"corpus": "test", "number": number},
            }


def test_every_sample_seen_is_accepted_or_rejected_with_its_reason(tmp_path):
    report = _prepare(tmp_path, map(_item, range(400)))
    rows = [json.loads(line) for line in (tmp_path / "results" / "rejected.jsonl").read_text().splitlines()]
    assert report.num_seen == 400
    assert [(row["key"], row["reason"]) for row in rows] == [
        (f"k{n}", "BROKEN" if n % 25 == 24 else "MISSING_CAPTION") for n in range(400) if n % 25 == 24 or n % 50 == 3
    ]
    accepted = {key for split in ("train", "val", "held_out") for key in Shards(tmp_path / "images" / split).keys}
    assert accepted | {row["key"] for row in rows} == {f"k{n}" for n in range(400)}
    assert accepted & {row["key"] for row in rows} == set()
    assert rows[0]["source"] == {"corpus": "test", "number": 3} and rows[0]["detail"] == "none"


def test_the_report_counts_words(tmp_path):
    _prepare(tmp_path, map(_item, range(40)))
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    assert report["num_seen"] == 40 and report["num_rejected"] == 2
    assert report["rejected"] == {"BROKEN": 1, "MISSING_CAPTION": 1}
    val = report["splits"]["val"]
    numbers = range(2, 40, 5)  # none of them is rejected
    expected = {2: len(numbers)}  # the second captions
    for number in numbers:
        expected[2 + number % 4] = expected.get(2 + number % 4, 0) + 1
    assert val["num_samples"] == 8 and val["num_captions"] == 16
    assert val["num_distinct_captions"] == len({text for number in numbers for text in _item(number).captions}) > 2
    assert val["caption_words"] == {str(length): expected[length] for length in sorted(expected)}
    assert val["max_caption_words"] == 5 and val["longest_caption"] == "a a a caption 7"


def test_bytes_do_not_depend_on_the_number_of_processes_or_the_time(tmp_path):
    _prepare(tmp_path / "a", map(_item, range(400)))
    time.sleep(1.1)  # a modification time in a tar counts whole seconds
    _prepare(tmp_path / "b", map(_item, range(400)), num_workers=2)
    one, two = _files(tmp_path / "a"), _files(tmp_path / "b")
    assert one.keys() == two.keys() and len(one) == 13 + 2 * (5 + 6 + 3 + 3)
    assert [name for name in one if one[name] != two[name]] == []


def test_of_equal_keys_the_first_is_kept(tmp_path):
    again = _item(2)
    report = _prepare(tmp_path, [_item(0), _item(2), again, _item(5)])
    assert report.num_rejected == {"DUPLICATE_KEY": 1} and report.num_seen == 4
    assert Shards(tmp_path / "images" / "val").keys == ["k2"]


def test_arrays_are_taken_as_well_as_functions(tmp_path):
    array = _paint(7)
    _prepare(tmp_path, [Pair("one", array, ["a"], [None], None, "train", {})])
    assert np.array_equal(images.decode(Shards(tmp_path / "images" / "train").image(0)), array)


def test_formats_and_conversions_of_accepted_pictures_are_counted(tmp_path):
    def picture(*notes: str) -> Pair:
        made = Picture(np.zeros((8, 8, 3), np.uint8), notes)
        return Pair(f"k{len(notes)}", lambda: made, ["a"], [None], None, "train", {})

    items = [picture("jpeg"), picture("jpeg", "icc_profile"), picture("png", "deep", "turned"), picture("jpeg")]
    report = _prepare(tmp_path, items)
    expected = {"deep": 1, "icc_profile": 1, "jpeg": 2, "png": 1, "turned": 1}
    assert report.pictures == expected, "the last one is a duplicate"
    assert json.loads((tmp_path / "results/report.json").read_text())["pictures"] == expected


def test_a_corpus_that_draws_another_size_is_our_bug(tmp_path):
    with pytest.raises(AssertionError, match="one"):
        _prepare(tmp_path, [Pair("one", np.zeros((9, 8, 3), np.uint8), ["a"], [None], None, "train", {})])


def test_examples_show_training_images(tmp_path):
    _prepare(tmp_path, map(_item, range(40)))
    picture = np.asarray(Image.open(tmp_path / "results" / "examples.png"))
    assert picture.shape[1] == 3 * 132 + 4, "nine examples stand in three columns"
    shown = {int(picture[10, 10 + 132 * i, 0]) for i in range(3)}
    assert len(shown) == 3 and shown <= {n for n in range(40) if n % 5 in (0, 1, 3)}


def test_no_accepted_sample_leaves_empty_splits_and_no_picture(tmp_path):
    report = _prepare(tmp_path, [_item(3)])
    assert {split: len(Shards(tmp_path / "images" / split)) for split in report.splits} == {
        "train": 0,
        "val": 0,
        "reworded": 0,
        "unseen": 0,
        "held_out": 0,
    }
    assert not (tmp_path / "results" / "examples.png").exists()


def test_too_many_rejects_are_refused_with_reasons_and_examples(tmp_path):
    report = _prepare(tmp_path, map(_item, range(400)))  # 24 of 400
    file = tmp_path / "rejected.jsonl"
    report.check(0.06, file)
    with pytest.raises(RejectedError) as caught:
        report.check(0.0599, file)
    assert caught.value.exit_code == 3
    for text in ("24 of 400", "BROKEN 16 (k24: number 24)", "MISSING_CAPTION 8 (k3: none)", "0.0599", str(file)):
        assert text in str(caught.value)


def test_a_corpus_without_validation_samples_is_refused(tmp_path):
    report = _prepare(tmp_path, [_item(0)])
    with pytest.raises(RejectedError, match="no sample of 1 is in split val"):
        report.check(0.5, tmp_path)
