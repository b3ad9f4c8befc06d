"""Several corpora as one: what a part repeats, how it is captioned, and that units are made once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ldm.corpora import kinds, made, mixture
from ldm.corpora.pairs import Litter, Pair, Rejection
from ldm.corpora.params import MixtureParams, PrepareParams
from ldm.corpora.report import Report
from tests.corpora import FOLDER, shapes_params
from tests.prepare_data import picture

ORDINARY = FOLDER.model_dump() | {"directory": "ordinary"}
SUBJECT = {
    "corpus": FOLDER.model_dump() | {"directory": "subject"},
    "repeats": 3,
    "caption": "a  zorp cat",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two pictures of a subject without text, and four others with one each but for the last."""
    for name, seeds in (("subject", range(2)), ("ordinary", range(10, 14))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            (tmp_path / name / f"{seed}.png").write_bytes(picture(seed))
            if name == "ordinary" and seed < 13:
                (tmp_path / name / f"{seed}.txt").write_text(f"cat {seed}")
    return tmp_path


def params(captions: str = "corpus", **parts: Any) -> PrepareParams:
    parts = parts or {"subject": SUBJECT, "others": {"corpus": ORDINARY, "repeats": 1, "caption": None}}
    corpus = MixtureParams.model_validate({"kind": "mixture", "parts": parts})
    return PrepareParams(
        corpus=corpus,
        captions=captions,
        image_size_px=16,
        num_samples_per_shard=10,
        max_seconds_per_sample=10,
        max_reject_fraction=0.5,
        num_examples=4,
    )


def test_a_part_is_repeated_and_captioned_and_its_splits_are_kept(source: Path):
    items = list(kinds.pairs(params(), source))
    found = {item.key: item.captions for item in items if isinstance(item, Pair)}
    copies = {f"subject-{seed}-{copy}": ["a zorp cat"] for seed in range(2) for copy in (1, 2, 3)}
    assert found == copies | {f"others-{seed}": [f"cat {seed}"] for seed in range(10, 13)}
    assert [(item.key, item.reason) for item in items if isinstance(item, Rejection)] == [
        ("others-13", "MISSING_CAPTION")
    ]
    alone = PrepareParams.model_validate(params().model_dump() | {"corpus": SUBJECT["corpus"], "captions": "none"})
    splits = {item.key: item.split for item in kinds.pairs(alone, source) if isinstance(item, Pair)}
    assert all(
        item.split == splits[item.key.split("-")[1]]
        for item in items
        if isinstance(item, Pair) and item.key.startswith("subject")
    )


def test_repeats_are_counted_as_such_and_not_as_equal_pictures(source: Path):
    (source / "ordinary/copy.png").write_bytes((source / "subject/0.png").read_bytes())
    (source / "ordinary/copy.txt").write_text("a copy")
    report, sizes_px = Report(), params().corpus.sizes_px(16)
    for item in kinds.pairs(params(), source):
        report.add(made.make(item, sizes_px))
    counts = report.to_json()
    assert counts["pictures"]["repeat"] == 4
    assert (counts["num_equal_pictures"], counts["num_near_duplicates"]) == (1, 0)
    assert counts["num_near_duplicates_across_splits"] == 0


def test_files_without_a_sample_are_those_of_all_parts(source: Path):
    (source / "ordinary/notes.pdf").write_text("not a picture")
    (source / "subject/notes.pdf").write_text("not a picture")
    found = [item.counts for unit in kinds.units(params(), source) for item in unit.items() if isinstance(item, Litter)]
    assert found == [{".pdf": 1}, {".pdf": 1}]


def test_any_corpora_can_be_mixed_and_all_texts_left_out(source: Path):
    parts = {"subject": SUBJECT, "scenes": {"corpus": shapes_params(8, 2, 2), "repeats": 2, "caption": None}}
    pairs = [item for item in kinds.pairs(params(**parts), source) if isinstance(item, Pair)]
    assert Counter(pair.key.split("-")[0] for pair in pairs) == {"subject": 6, "scenes": 32}
    assert len({pair.key for pair in pairs}) == len(pairs)
    assert any(claim for pair in pairs for claim in pair.claims) and all(pair.captions != [""] for pair in pairs)
    without = [item for item in kinds.pairs(params("none", **parts), source) if isinstance(item, Pair)]
    assert [pair.key for pair in without] == [pair.key for pair in pairs]
    assert all(pair.captions == [""] for pair in without)


def test_units_change_with_what_they_are_made_of_alone(source: Path):
    def hashes(**parts: Any) -> list[str]:
        return [unit.sha256 for unit in kinds.units(params(**parts), source)]

    others = {"corpus": ORDINARY, "repeats": 1, "caption": None}
    before = hashes(subject=SUBJECT, others=others)
    assert len(set(before)) == len(before)
    told = hashes(subject=SUBJECT | {"caption": "another"}, others=others)
    more = hashes(subject=SUBJECT | {"repeats": 4}, others=others)
    for after in (told, more):
        assert after[0] != before[0] and after[1:] == before[1:]
    plain = kinds.units(PrepareParams.model_validate(params().model_dump() | {"corpus": ORDINARY}), source)
    corpus = params(subject=SUBJECT, others=others).corpus
    assert isinstance(corpus, MixtureParams)
    assert [mixture.unit("others", corpus.parts["others"], unit).sha256 for unit in plain] == before[1:]
    # Twice the same folder is twice the same samples, by other keys.
    assert len(set(hashes(one=SUBJECT, two=SUBJECT))) == 2


def test_sizes_are_those_of_all_parts():
    assert params().corpus.sizes_px(16) == [(16, 16)]
    buckets = {"kind": "buckets", "step_px": 8, "max_aspect_ratio": 2.0, "crop": "centre"}
    framed = ORDINARY | {"pixels": ORDINARY["pixels"] | {"framing": buckets}}
    mixed = params(subject=SUBJECT, others={"corpus": framed, "repeats": 1, "caption": None})
    found = mixed.corpus.sizes_px(32)
    assert (32, 32) in found and len(found) > 1 and len(set(found)) == len(found)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"a b": SUBJECT},
        {"one": SUBJECT | {"repeats": 0}},
        {"one": SUBJECT | {"caption": " "}},
        {"one": SUBJECT | {"corpus": {"kind": "mixture", "parts": {"one": SUBJECT}}}},
    ],
    ids=["none", "name", "repeats", "caption", "nested"],
)
def test_no_other_mixture_is_legal(parts: dict[str, Any]):
    with pytest.raises(ValidationError):
        MixtureParams.model_validate({"kind": "mixture", "parts": parts})


def test_equal_pictures_that_two_parts_put_into_train_and_val_are_named(source: Path):
    """Each part chooses splits by a seed of its own."""
    for seed in range(40):
        (source / f"ordinary/{seed}.png").write_bytes(picture(seed))
        (source / f"ordinary/{seed}.txt").write_text(f"cat {seed}")
    parts = {f"p{seed}": {"corpus": ORDINARY | {"seed": seed}, "repeats": 1, "caption": None} for seed in (0, 1)}
    report, sizes_px, splits = Report(), params(**parts).corpus.sizes_px(16), dict[str, dict[str, str]]()
    for item in kinds.pairs(params(**parts), source):
        report.add(made.make(item, sizes_px))
        if isinstance(item, Pair):
            part, key = item.key.split("-", 1)
            splits.setdefault(key, {})[part] = made.make(item, sizes_px).split
    report.compare()
    apart = {key for key, found in splits.items() if len(set(found.values())) == 2}
    assert len(apart) > 5 and {bits for *_, bits in report.across} == {0}
    assert {train.split("-", 1)[1] for train, _, _ in report.across} == apart
    assert report.to_json()["num_equal_pictures"] == len(splits) - len(apart)
