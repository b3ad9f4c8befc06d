"""The README's pictures and numbers come from files that the stages wrote, and replace the former ones."""

import json
from pathlib import Path

import pytest

from docs import gallery
from tests.import_closure import ROOT


def test_a_block_is_replaced_and_the_rest_stays() -> None:
    other = "<!-- gallery b -->\nkept\n<!-- /gallery b -->\n"
    readme = f"top\n<!-- gallery a -->\nold\n<!-- /gallery a -->\n{other}bottom\n"
    once = gallery.rewritten(readme, "a", "new\n")
    assert once == f"top\n<!-- gallery a -->\nnew\n<!-- /gallery a -->\n{other}bottom\n"
    assert gallery.rewritten(once, "a", "new\n") == once
    with pytest.raises(AssertionError, match="markers"):
        gallery.rewritten(readme, "c", "new\n")


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"psnr_db": 28.126, "ssim": 0.9514}))
    (tmp_path / "table.md").write_text("| a |\n")
    numbers = gallery.numbers({"autoencoder_results": tmp_path, "evaluation": tmp_path})
    assert numbers == "| a |\n\nAutoencoder: 28.13 dB, SSIM 0.951\n"


def test_the_readme_has_the_markers() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind in gallery.PICTURES:
        assert "new" in gallery.rewritten(readme, kind, "new")
