"""The pages for people: every link leads somewhere, and the README is what a newcomer needs."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ldm.core import config
from ldm.sampling.params import SampleParams
from ldm.tools import cli, recipe
from tests.import_closure import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language, without what they are indented by."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What `#...` may name: headings in lower case, hyphens for spaces, without punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(page)):
        name, _, anchor = "".join(link).partition("#")
        if name.startswith("https://"):
            continue
        place = page.parent / name if name else page
        assert place.exists(), link
        assert not anchor or anchor in anchors(place), link


def test_the_first_screen_says_what_it_is_and_how_to_try_it() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = "\n".join(lines[:18])
    assert "text-to-image" in first and "make demo" in first and "make test" in first and "docs/images/" in first
    assert len(lines) <= 150
    assert "docs/images/web_desktop.png" in "\n".join(lines), "what the page of `ldm web` looks like"


def test_every_page_is_within_reach_of_the_readme() -> None:
    seen, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)", prose(page))
        waiting += {(page.parent / link).resolve() for link in links if "://" not in link} - seen
    assert not set(PAGES) - seen


def test_every_reason_of_a_rejection_is_explained() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "ldm/corpora").glob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func).split(".")[-1] in ("Rejected", "Rejection", "rejection")]
    values = [value.value for call in ours for value in call.args if isinstance(value, ast.Constant)]
    reasons = {value for value in values if re.fullmatch(r"[A-Z][A-Z0-9_]{3,}", str(value))}
    page = (ROOT / "docs/your-images.md").read_text(encoding="utf-8")
    assert len(reasons) > 25 and not {reason for reason in reasons if not re.search(rf"\b{reason}\b", page)}


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md", "docs/experiments.md"])
def test_an_experiment_of_the_pages_changes_the_default(name: str) -> None:
    own = config.read(SampleParams, "sample", ROOT / "params.yaml").drawing.guidance_scale
    text = (ROOT / name).read_text(encoding="utf-8")
    values = re.findall(r"sample\.drawing\.guidance_scale=([\d.]+)|/ *guidance_scale: ([\d.]+)/'", text)
    assert values and all(float("".join(value)) != own for value in values)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.stem)
def test_params_of_a_page_are_accepted_over_the_default(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "yaml"):
        (tmp_path / "page.yaml").write_text(block, encoding="utf-8")
        recipe.complete(str(tmp_path / "page.yaml"))


def test_a_base_may_be_copied_again(tmp_path: Path) -> None:
    """The later copy replaces the former one, and does not go into it."""
    text = "".join(block for page in PAGES for block in blocks(page, "sh"))
    (loop,) = re.findall(r"^for .*?^done$", text, flags=re.MULTILINE | re.DOTALL)
    for content in ("first", "second"):
        for part in ("autoencoder", "clip", "unet"):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / part / "passport.json").write_text(content)
        subprocess.run(["sh", "-ec", loop], cwd=tmp_path, check=True)
        models = tmp_path / "data/models"
        assert sorted(str(path.relative_to(models)) for path in models.rglob("*") if path.is_file()) == [
            f"{part}/base/passport.json" for part in ("autoencoder", "clip", "unet")
        ]
        assert (models / "unet/base/passport.json").read_text() == content


def test_commands_of_the_pages_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(block for page in PAGES for block in blocks(page, "sh")).replace("\\\n", " ")
    commands = re.findall(r"^ldm(?: .*)?$", text, flags=re.MULTILINE)
    assert len(commands) > 50
    for command in commands:
        words = shlex.split(re.split(r" [|>] ", command)[0], comments=True)
        try:
            cli.parser().parse_args(words[1:])
        except SystemExit as ended:
            assert ended.code == 0, f"{command}: {capsys.readouterr().err}"
