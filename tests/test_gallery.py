"""The pictures and numbers of docs/results.md come from files that the stages wrote, and replace the former ones."""

import json
import re
from pathlib import Path

import pytest

from docs import gallery


def test_a_block_is_replaced_and_the_rest_stays() -> None:
    other = "<!-- gallery b -->\nkept\n<!-- /gallery b -->\n"
    page = f"top\n<!-- gallery a -->\nold\n<!-- /gallery a -->\n{other}bottom\n"
    once = gallery.rewritten(page, "a", "new\n")
    assert once == f"top\n<!-- gallery a -->\nnew\n<!-- /gallery a -->\n{other}bottom\n"
    assert gallery.rewritten(once, "a", "new\n") == once
    with pytest.raises(AssertionError, match="markers"):
        gallery.rewritten(page, "c", "new\n")


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"psnr_db": 28.126, "ssim": 0.9514}))
    (tmp_path / "table.md").write_text("| a |\n")
    numbers = gallery.numbers({"autoencoder_results": tmp_path, "evaluation": tmp_path})
    assert numbers == "| a |\n\nAutoencoder: 28.13 dB, SSIM 0.951\n"


def test_the_page_has_the_markers() -> None:
    page = gallery.PAGE.read_text(encoding="utf-8")
    for kind in gallery.PICTURES:
        assert "new" in gallery.rewritten(page, kind, "new")


def test_the_scores_of_the_readme_are_those_of_the_page() -> None:
    row = re.search(r"\| whole scene \|(.*)\|", gallery.PAGE.read_text(encoding="utf-8"))
    assert row
    held_out, _, held_out_ceiling, *_, seen, _, seen_ceiling = re.findall(r"([\d.]+) %", row.group(1))
    text = " ".join((gallery.ROOT / "README.md").read_text(encoding="utf-8").split())
    assert [float(score) for score in re.findall(r"(\d+) %", text.split("## How good it is")[1])][:2] == [
        round(float(seen)),
        round(float(held_out)),
    ]
    assert f"in {float(seen_ceiling):.0f} and {float(held_out_ceiling):.0f} %" in text
