"""The guidance sweep in words: what is worth a picture, and that its table comes back as it was written."""

from pathlib import Path

import pytest

from ldm.core.errors import IntegrityError
from ldm.evaluation import guidance, report
from ldm.evaluation.guidance import Line, Point
from tests.report_data import MUSIC, ORACLE, made


def line(*intervals: tuple[float, float] | None, measure: str = "scene_accuracy", floor: float | None = None) -> Line:
    points = [Point(float(i), 0.5 if ends is None else sum(ends) / 2, ends) for i, ends in enumerate(intervals)]
    return Line(measure, f"{measure} in words", points, floor)


@pytest.mark.parametrize(
    ("intervals", "tells"),
    [
        ([(0.1, 0.3), (0.4, 0.5)], True),
        ([(0.4, 0.5), (0.1, 0.3), (0.2, 0.45)], True),
        ([(0.1, 0.3), (0.3, 0.5)], False),
        ([(0.1, 0.3)], False),
        ([(0.1, 0.3), None], False),
    ],
)
def test_a_measure_tells_scales_apart_if_two_of_its_intervals_do_not_overlap(intervals, tells: bool) -> None:
    assert line(*intervals).tells == tells


def test_only_the_first_measure_and_those_that_tell_have_a_panel_and_the_others_are_named() -> None:
    flat = line((0.1, 0.3), (0.2, 0.4), measure="flat_accuracy")
    steep = line((1.0, 2.0), (3.0, 4.0), measure="kid_shapes", floor=0.5)
    unknown = line(None, None, measure="frechet_shapes")
    panels = guidance.panels([flat, steep, unknown])
    assert [panel.title for panel in panels] == [flat.name, steep.name]
    assert [panel.is_share for panel in panels] == [True, False]
    assert [series.label for series in panels[1].series] == ["samples", "real images"]
    assert panels[1].series[0].intervals == [(1.0, 2.0), (3.0, 4.0)]
    assert guidance.note([steep, flat, unknown]).endswith(f": {flat.name}")
    assert guidance.note([steep]) == "" and guidance.panels([]) == []


def test_the_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = [line((0.1, 0.3), (0.4, 0.5)), line(None, None, measure="frechet_shapes", floor=2.5)]
    guidance.write(tmp_path / "t.csv", found)
    assert guidance.read(tmp_path / "t.csv") == found
    shown = [row.rpartition(",")[2] for row in (tmp_path / "t.csv").read_text().splitlines()]
    assert shown == ["is_shown", "1", "1", "0", "0"]
    guidance.write(tmp_path / "none.csv", [])
    assert guidance.read(tmp_path / "none.csv") == []
    (tmp_path / "other.csv").write_text("guidance_scale,scene_accuracy\n1,2\n")
    for name in ("other.csv", "missing.csv"):
        with pytest.raises(IntegrityError, match=rf"{name}: .*\n.*dvc repro evaluate"):
            guidance.read(tmp_path / name)


@pytest.mark.parametrize(("oracle", "first"), [(ORACLE, "whole scene right"), (MUSIC, "whole melody right")])
def test_measures_are_named_as_the_oracle_names_them(oracle, first: str) -> None:
    found = guidance.lines(made(oracle).sweep, oracle)
    assert found[0].name == first and [point.scale for point in found[0].points] == [1, 4]
    names = {each.measure: each.name for each in found}
    assert names["kid_own_clip"] == "kernel distance (own clip)"
    assert names["frechet_own_clip"] == "Frechet distance (own clip)"
    assert names["own_clip_score_margin"].startswith("CLIP score")
    floors = {each.measure: each.floor for each in found}
    assert floors["kid_own_clip"] == made(oracle).sweep[0]["kid_own_clip_floor"] and floors[found[0].measure] is None


def test_without_an_oracle_there_are_distances_and_scores_of_captions() -> None:
    found: report.Report = made(oracle=None)
    measures = [each.measure for each in guidance.lines(found.sweep, None)]
    assert measures == ["own_clip_score_margin", "frechet_own_clip", "kid_own_clip"]
