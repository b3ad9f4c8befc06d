"""The site: every key and command has its place, and it builds without a warning and without the network."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from docs import drawn, reference
from ldm.tools import cli
from ldm.tools.check.sections import SECTIONS
from tests.import_closure import ROOT

PAGES = reference.pages()
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def ids(page: str) -> set[str]:
    """Names of a page that a link can lead to."""
    return set(re.findall(r"\{ #([\w.-]+) \}", PAGES[page]))


def keys(value: Any) -> Iterator[tuple[str, ...]]:
    """The path of every key of a params file, without places in lists, names of parts, and what is handed on."""
    if isinstance(value, list):
        for entry in value:
            yield from keys(entry)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (key,)
            inner = list(inner.values()) if key == "parts" else inner
            yield from ((key, *path) for path in keys(inner) if not key.endswith("arguments"))


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_of_a_section_has_a_place(name: str) -> None:
    """By the schema, which knows every kind; names alone, since the schema does not say where a class stands."""
    schema = SECTIONS[name].model_json_schema()
    wanted = {key for model in (schema, *schema.get("$defs", {}).values()) for key in model.get("properties", {})}
    found = {place.rpartition(".")[2] for place in ids(f"reference/params/{name}.md")}
    assert not wanted - found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_key_that_is_used_is_found_under_its_path(path: Path) -> None:
    for section, values in YAML(typ="safe").load(path.read_text()).items():
        places, page = ids(f"reference/params/{section}.md"), PAGES[f"reference/params/{section}.md"]
        for key in keys(values):
            if section == "tasks" and key[1:2] == ("drawing",):
                key = key[:2]  # keys of `sample.drawing`
            whole = r"(\.\w+)?\.".join(map(re.escape, (section, *key)))
            repeated = [r"(\.\w+)?\.".join(map(re.escape, (section, *key[:length]))) for length in range(1, len(key))]
            assert any(re.fullmatch(whole, place) for place in places) or any(
                re.search(rf"^## `{part}(\.\w+)?` .*\n\nThe same keys as", page, re.MULTILINE) for part in repeated
            ), f"{section}.{'.'.join(key)}"


def test_a_key_says_what_it_may_be_what_it_is_and_what_it_reruns() -> None:
    page = PAGES["reference/params/train_unet.md"]
    assert "**A change reruns:** `check`, `train_unet`, `sample`, `evaluate`, `model`." in page
    entry = page.split("{ #train_unet.training.save_every_steps }")[1].split("\n#")[0]
    assert "Updates between saved states." in entry and "an integer > 0" in entry and "**Unit:** updates" in entry
    assert "a stopped run goes on" in entry
    rate = page.split("{ #train_unet.training.learning_rate }")[1].split("\n#")[0]
    default = YAML(typ="safe").load((ROOT / "recipes/default.yaml").read_text())["train_unet"]["training"]
    assert f"**Default:** `{default['learning_rate']}`" in rate and "a stopped run" not in rate
    assert "**A change reruns:** nothing." in PAGES["reference/params/machine.md"]


def test_every_command_and_option_has_a_place() -> None:
    page = PAGES["reference/commands.md"]
    (commands,) = (action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        part = page.split(f"{{ #{name} }}")[1].split("\n## ")[0]
        assert all(flag in part for action in command._actions for flag in action.option_strings[:1] if flag != "-h")


def test_formulas_are_drawn_and_code_stays() -> None:
    page = drawn.formulas("Let $z_t$ be.\n\n$$\\frac{a}{b}$$\n\n```sh\necho $A $B\n```\n`$x` and `$y`\n")
    assert page.count("<svg") == 2 and 'aria-label="z_t"' in page and "echo $A $B" in page and "`$x` and `$y`" in page


def test_a_graph_is_drawn() -> None:
    page = drawn.graphs(
        "a\n```mermaid\nflowchart LR\n    c[(corpus)] --> prepare\n    prepare -- images --> train\n```\n"
    )
    assert page.startswith("a\n<svg") and re.findall(r"<text[^>]*>(\w+)", page) == ["corpus", "prepare", "train"]
    assert page.count("<polyline") == 2


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does; a warning, such as of a dead link, ends it with an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    wanted = {*PAGES, "contributing.md", *(path.name for path in (ROOT / "docs").glob("*.md"))}
    assert not {page for page in wanted if not (site / page).with_suffix(".html").is_file()}
    assert 'id="ldm.denoiser.model.diffusion.add_noise"' in (site / "reference/python/denoiser.html").read_text()
    assert (
        "reference/python/denoiser.html#ldm.denoiser.model.diffusion.add_noise" in (site / "diffusion.html").read_text()
    )


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link[^>]* rel=[\"']?(?:stylesheet|icon|preconnect|preload)[\"']?[^>]*>", text)
        assert not [what for what in loaded if "//" in what], page
    assert not re.search(r"url\([\"']?https?:", (site / "site.css").read_text())
