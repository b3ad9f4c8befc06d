"""What a training logs, on disk and for the passport."""

import json
from pathlib import Path

from ldm.training.history import NO_HISTORY, History


def test_tables_pictures_and_facts(tmp_path: Path):
    break_ = {"step": 3, "manifest_sha256": "ab", "differs": {"params.rate": [1, 2]}}
    history = History([{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5, "new": 2.0}], [{"step": 4}], [], [break_])
    history.write(tmp_path)
    assert (tmp_path / "curves.csv").read_text() == "step,loss,new\n2,1,\n4,0.5,2\n"
    assert json.loads((tmp_path / "skipped_updates.json").read_text()) == []
    assert (tmp_path / "curves.png").is_file()
    assert history.facts == {"resumed_from": [break_]}
    assert History([], [], [], []).facts == {}, "what was never broken says nothing of it"
    assert History([], [], [], [], "bf16").facts == {"precision": "bf16"}


def test_what_was_not_trained_has_tables_without_rows_and_no_picture(tmp_path: Path):
    NO_HISTORY.write(tmp_path)
    assert {path.name: path.read_text().strip() for path in tmp_path.iterdir()} == {
        "curves.csv": "",
        "validation.csv": "",
    }
