"""Tables of a report: what they quote, in which order, and under which labels."""

import csv

from ldm.evaluation import metrics, tables
from tests.report_data import MUSIC, ORACLE, SUBJECTS, made


def test_every_accuracy_has_its_interval_in_the_table_of_accuracies():
    header, *rows = tables.accuracy_rows(made(), ORACLE)
    assert header == ["images", "attribute", "num_objects", "accuracy", "low", "high", "num_images"]
    wilson = metrics.proportion([True] * 5 + [False])
    expected = ["decoded_seen", "relation", "2", f"{5 / 6:.4f}", f"{wilson.low:.4f}", f"{wilson.high:.4f}", "6"]
    assert expected in rows
    assert {row[0] for row in rows} == set(SUBJECTS)


def test_the_markdown_table_quotes_the_numbers():
    text = tables.main_table(made())
    lines = text.splitlines()
    columns = [part for name in ("held out", "unseen", "seen") for part in (name, "real images", "round trips")]
    assert lines[0] == f"|  | {' | '.join(columns)} |"
    held_out, seen = ["50.0 % (25.4 to 74.6)", "100.0 %", "66.7 %"], ["75.0 % (46.8 to 91.1)", "91.7 %", "83.3 %"]
    cells = lines[2].strip("| ").split(" | ")
    assert cells[0] == "whole scene" and cells[1:4] == held_out and cells[7:] == seen
    distance = next(line for line in lines if line.startswith("| Frechet distance (own clip) | "))
    numbers = [f"{made().metrics[f'frechet_own_clip_{key}']:.4g}" for key in ("held_out", "held_out_floor")]
    assert distance.split(" | ")[1:4] == [*numbers, ""]
    sweep = lines.index(next(line for line in lines if line.startswith("| guidance scale |")))
    assert len({line.count("|") for line in lines[:sweep] if line.startswith("|")}) == 1
    assert lines[sweep + 2].startswith("| 1 | 50.0 % (25.4 to 74.6) | ")
    assert "oracle_real 0.9722" in text and "30 training images" in text
    assert "whole scene" not in tables.main_table(made(oracle=None))


def test_a_set_that_was_not_sampled_has_no_columns():
    text = tables.main_table(made(without=("held_out",)))
    assert "held out" not in text and "| unseen |" in text.splitlines()[0]


def test_whole_claims_come_first_then_attributes_in_the_order_of_the_oracle():
    labels = [line.split(" | ")[0].removeprefix("| ") for line in tables.main_table(made()).splitlines()]
    wholes = [f"whole scene{group}" for group in ("", ", 1 object", ", 2 objects", ", strict outlines")]
    others = ["count", "colour", "shape", "size", "relation", "background", "strict outlines"]
    assert labels[2 : 2 + len(wholes + others)] == wholes + others


def test_another_oracle_gives_its_own_labels():
    header, *_ = tables.accuracy_rows(made(MUSIC), MUSIC)
    assert header[2] == "num_voices"
    lines = tables.main_table(made(MUSIC)).splitlines()
    labels = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert labels[2:6] == ["whole melody", "whole melody, 1 voice", "whole melody, 2 voices", "key"]
    assert any(line.startswith("| guidance scale | whole melody | key | ") for line in lines)


def test_a_folder_holds_the_accuracies_only_where_there_are_some(tmp_path):
    for name, report in {"with": made(), "without": made(oracle=None)}.items():
        (tmp_path / name).mkdir()
        tables.write(tmp_path / name, report)
    names = {folder: {path.name for path in (tmp_path / folder).iterdir()} for folder in ("with", "without")}
    assert names["with"] - names["without"] == {"accuracies.csv"}
    header, *rows = csv.reader((tmp_path / "with/scores.csv").read_text().splitlines())
    assert rows[0] == ["held out", "whole scene", "samples", "0.5000", "0.2538", "0.7462", "12"]
    assert {row[0] for row in rows} == {"held out", "unseen", "seen"}
    assert {row[2] for row in rows} == {"samples", "real images", "round trips"}
    without = (tmp_path / "without/scores.csv").read_text()
    assert without == ",".join(header) + "\n", "DVC complains of a table without its columns"
    with (tmp_path / "with/accuracies.csv").open(newline="") as file:
        assert list(csv.reader(file)) == tables.accuracy_rows(made(), ORACLE)
