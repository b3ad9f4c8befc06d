"""The account of a corpus, and sets in few bytes."""

from dataclasses import replace

import pytest

from ldm.corpora import report
from ldm.corpora.likeness import Likeness
from ldm.corpora.made import Sample
from ldm.corpora.pairs import Litter, Rejection, size_notes
from ldm.corpora.report import Distinct, Report


def _sample(key: str, looks: str, pixels: str) -> Sample:
    alike = Likeness(looks, pixels)
    return Sample(key, "train", "", ["a caption"], [None], None, {}, None, alike, ["png"], {"webp": b"x"})


def test_a_set_of_texts_counts_each_once_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_FEW", 7)
    distinct, texts = Distinct(), [f"text {number % 40}" for number in range(200)]
    assert [distinct.add(text) for text in texts] == [True] * 40 + [False] * 160
    assert len(distinct) == 40


def test_equal_pictures_and_those_that_look_alike_are_counted() -> None:
    account = Report()
    for number, (looks, pixels) in enumerate([("a", "1"), ("a", "1"), ("a", "2"), ("ff00", "3"), ("ff00", "3")]):
        account.add(_sample(f"k{number}", looks, pixels))
    account.compare()
    found = account.to_json()
    assert (found["num_equal_pictures"], found["num_near_duplicates"]) == (2, 1)
    assert found["splits"]["train"]["num_samples"] == account.num_seen == 5


def test_of_equal_keys_the_first_is_accepted() -> None:
    account = Report()
    first, second = _sample("k", "a", "1"), _sample("k", "b", "2")
    assert account.add(first) is first
    again = account.add(second)
    assert isinstance(again, Rejection) and again.reason == "DUPLICATE_KEY"
    assert account.num_seen == 2 and account.num_rejected == {"DUPLICATE_KEY": 1}


def test_tables_count_sizes_words_and_reasons_and_name_pairs_that_look_alike() -> None:
    account = Report()
    for key, looks, pixels, size in (
        ("k0", "a", "1", (640, 480)),
        ("k1", "a", "2", (500, 900)),
        ("k2", "ff00", "3", (64, 64)),
    ):
        sample = _sample(key, looks, pixels)
        account.add(replace(sample, notes=["png", *size_notes(*size)], captions=["a", "b c"], claims=[None, None]))
    account.add(_sample("k3", "a", "1"))
    account.add(Rejection("bad", "BROKEN", "", {}))
    account.compare()
    tables = {name: rows for name, (_, rows) in account.tables().items()}
    assert tables["sides"] == [(64, 1), (256, 2)] and tables["aspects"] == [(1, 1), (1.25, 1), (1.75, 1)]
    assert tables["caption_words"] == [(1, 3), (2, 4)]
    assert tables["rejected"] == [("BROKEN", 1)] and tables["near_duplicates"] == [("k0", "k1", 0)]
    assert account.to_json()["pictures"] == {"png": 4}


def test_pictures_that_look_alike_in_different_splits_are_counted_and_named() -> None:
    account = Report()
    for number, looks in enumerate(["00000000000000ff", "ff00000000000000", "0f0f0f0f0f0f0f0f"]):
        account.add(_sample(f"train-{number}", looks, f"{number}"))
    for number, looks in enumerate(["00000000000000ff", "ff0000000000000f", "ff0000000000001f", "f0f0f0f0f0f0f0f0"]):
        account.add(replace(_sample(f"val-{number}", looks, f"a{number}"), split="val"))
    account.compare()
    expected = [("train-0", "val-0", 0), ("train-1", "val-1", 4)]
    assert account.tables()["near_duplicates_across_splits"] == (("train", "val", "bits"), expected)
    assert account.to_json()["num_near_duplicates_across_splits"] == 2
    assert account.tables()["near_duplicates"] == (("first", "alike", "bits"), [("val-1", "val-2", 1)])


def test_those_of_one_split_are_counted_by_the_same_rule_and_equal_ones_once() -> None:
    account = Report()
    looks = ["00000000000000ff", "000000000000000f", "000000000000000f", "00000000000000f0", "ffffffffffffffff"]
    for number, each in enumerate(looks):
        account.add(_sample(f"k{number}", each, "one" if number in (1, 2) else f"{number}"))
    account.compare()
    assert account.tables()["near_duplicates"][1] == [("k0", "k1", 4), ("k0", "k3", 4)]
    found = account.to_json()
    assert (found["num_equal_pictures"], found["num_near_duplicates"]) == (1, 2)


def test_a_thousand_pairs_are_named_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_NUM_PAIRS", 3)
    account = Report()
    for number in range(6):
        sample = _sample(f"k{number}", "a", f"{number}")
        account.add(replace(sample, split="val" if number == 5 else "train"))
    account.compare()
    assert account.num_alike == 4 and [pair[1] for pair in account.alike] == ["k1", "k2", "k3"]


def test_files_without_a_sample_are_no_samples() -> None:
    account = Report()
    for counts in ({".npz": 2, ".pdf": 1}, {".pdf": 4}):
        account.add(Litter(counts))
    assert account.num_seen == 0 and account.to_json()["files_without_sample"] == {".pdf": 5, ".npz": 2}


def test_the_example_of_a_reason_names_its_file_once() -> None:
    account = Report()
    account.add(Rejection("a-b-0f", "NOT_IMAGE", "12 bytes", {"corpus": "folder", "file": "a/b.png"}))
    account.add(Rejection("c", "TWO_IMAGES", "c.png, c.jpg", {"corpus": "folder", "file": "c.png"}))
    account.add(Rejection("d", "TOO_SMALL", "4 px", {"corpus": "webdataset", "tar": "00.tar", "key": "d"}))
    assert account.first_rejected == {
        "NOT_IMAGE": "a-b-0f: a/b.png: 12 bytes",
        "TWO_IMAGES": "c: c.png, c.jpg",
        "TOO_SMALL": "d: 00.tar: 4 px",
    }
