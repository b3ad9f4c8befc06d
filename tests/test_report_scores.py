"""Numbers of an evaluation in words: shares, controls, distances, and what is mistaken for what."""

from pathlib import Path

import pytest

from ldm.core.errors import IntegrityError
from ldm.evaluation import mistakes, tables
from ldm.tools.report import scores
from ldm.tools.report.scores import Confusion
from tests.report_data import features, made, searched

COUNTS = {
    ("samples", "shape", "star", "star"): 6,
    ("samples", "shape", "star", "circle"): 3,
    ("samples", "shape", "star", "other"): 1,
    ("samples", "shape", "circle", "circle"): 10,
    ("real images", "shape", "star", "star"): 9,
    ("real images", "shape", "star", "circle"): 1,
    ("samples", "count", "2", "2"): 4,
}


def test_scores_are_read_with_intervals_beside_real_images_and_round_trips(tmp_path: Path) -> None:
    tables.write(tmp_path, made())
    found = scores.read(tmp_path)
    assert list(found) == ["held out", "unseen", "seen"]
    main = found["held out"][0]
    assert (main.name, str(main.samples), main.samples.interval) == ("whole scene", "50.0 %", "25.4 to 74.6")
    assert (str(main.real), str(main.round_trips), main.samples.count) == ("100.0 %", "66.7 %", 12)


def test_without_an_oracle_there_are_none_or_that_of_retrieval(tmp_path: Path) -> None:
    tables.write(tmp_path, made(oracle=None))
    assert scores.read(tmp_path) == {}
    report = searched(features(70, 12), features(71, 12)[:5] @ features(72, 12).T > 0.3)
    tables.write(tmp_path, report)
    (score,) = scores.read(tmp_path)["seen"]
    assert score.samples.value == pytest.approx(report.metrics["retrieval_accuracy"], abs=1e-4)
    assert (score.real, score.round_trips, score.samples.count) == (None, None, 5)
    with pytest.raises(IntegrityError, match=r"missing/scores.csv: .*\n.*dvc repro evaluate"):
        scores.read(tmp_path / "missing")


def test_a_confusion_says_what_is_right_and_what_is_mistaken_most() -> None:
    count, shape = scores.confusions(COUNTS)
    assert (count.attribute, count.most, count.asked, count.read) == ("count", [], ["2"], ["2"])
    assert shape.asked == ["circle", "star"] and shape.read == ["circle", "star", "other"]
    assert shape.share("star", "circle") == 0.3 and shape.share("circle", "star") == 0
    assert shape.most == ["star shown as circle: 3 times, 30.0 %", "star shown as other: 1 times, 10.0 %"]
    assert shape.right == "16 of 20 (80.0 %) are right in samples, and 9 of 10 (90.0 %) in real images"
    assert count.right == "4 of 4 (100.0 %) are right in samples"
    many = [str(i) for i in range(40)]
    assert shape.is_small and not Confusion("class", many, many, {}, "").is_small
    assert scores.confusions({(mistakes.REAL_IMAGES, "shape", "star", "star"): 1}) == []


def test_controls_are_those_that_the_metrics_have() -> None:
    assert [share for _, share in scores.controls({"oracle_real": 0.9995, "oracle_shuffled": 0}, {})] == [
        "100.0 %",
        "0.0 %",
    ]
    ((words, chance),) = scores.controls({"num_retrieval_images": 400}, {"kind": "retrieval", "k": 5})
    assert "5 of 400" in words and chance == "1.25 %"
    ((_, chance),) = scores.controls({"num_retrieval_images": 200}, {"kind": "retrieval", "k": 199})
    assert chance == "99.5 %"
    assert scores.controls({}, {"kind": "none"}) == []


def test_distances_stand_beside_those_of_the_real_images() -> None:
    report = made()
    rows = {row[:2]: row[2:] for row in scores.distances(report.metrics, report.sets, report.spaces)}
    key = "frechet_own_clip_held_out"
    expected = tuple(f"{report.metrics[name]:.4g}" for name in (key, f"{key}_floor"))
    assert rows["Frechet distance (own clip)", "held out"] == expected
    assert "±" in rows["kernel distance (own clip)", "seen"][0]
    assert " to " in rows["CLIP score (own clip), own minus other caption", "seen"][1]
    assert list(scores.distances({}, ["seen"], ["shapes"])) == []
