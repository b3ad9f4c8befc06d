"""docs/diffusion.md says what is true: its functions and pictures exist, and `ldm figures` draws every one of them."""

import ast
import re

import pytest

from ldm.tools.figures import book
from tests.import_closure import ROOT

PAGE = ROOT / "docs" / "diffusion.md"
TEXT = PAGE.read_text(encoding="utf-8")
FUNCTIONS = re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", TEXT)
PICTURES = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)


@pytest.mark.parametrize(("name", "place"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_a_function_of_the_page_is_where_it_says(name: str, place: str) -> None:
    tree = ast.parse((PAGE.parent / place).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_page_names_the_functions_of_diffusion() -> None:
    assert {"add_noise", "z0_from_prediction", "denoiser", "ddpm", "ddim", "times"} <= {name for name, _ in FUNCTIONS}


def test_the_page_shows_every_figure_once() -> None:
    assert sorted(PICTURES) == sorted(f"images/diffusion/{name}.png" for name in book.NAMES)
    assert {path.name for path in (PAGE.parent / "images/diffusion").iterdir()} == {
        f"{name}.png" for name in book.NAMES
    }


def test_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in (PAGE.parent / "images/diffusion").iterdir()) < 1.5e6


def test_other_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert all(link.startswith("https://") or (PAGE.parent / link).is_file() for link in links)
    named = re.findall(r"`((?:tests|benchmarks|docs|ldm)/[\w/.]+)`", TEXT)
    assert named and all((ROOT / name).is_file() for name in named)
    assert "(docs/diffusion.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
