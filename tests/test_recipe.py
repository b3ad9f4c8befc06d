"""Recipes over the default: what is merged, what is written, what is refused."""

import errno
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import dumps_yaml, modify_yaml
from ruamel.yaml import YAML

from ldm.core.errors import ConfigError
from ldm.denoiser.training.params import Trait
from ldm.tools import cli, recipe
from ldm.tools.check import check
from ldm.tools.recipe import Recipe
from tests.import_closure import ROOT
from tests.repository import params_of, setting

NAMES = [path.stem for path in sorted((ROOT / "recipes").glob("*.yaml"))]
DEFAULT = ROOT / "recipes/default.yaml"
EXPECTATIONS = ("result:", "time:", "hardware:", "command:")


def load(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def header(text: str) -> list[str]:
    return text.split("\n\n")[0].splitlines()


# The recipes of the repository.


def test_the_committed_params_are_the_default() -> None:
    assert (ROOT / "params.yaml").read_bytes() == DEFAULT.read_bytes(), "run `make recipe NAME=default`"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_complete_and_says_what_to_expect(name: str) -> None:
    check.whole(Recipe(name, ROOT))
    text = params_of(name)
    assert list(load(text)) == list(check.SECTIONS)
    assert header(text) == header((ROOT / f"recipes/{name}.yaml").read_text())
    assert all(line.startswith("#") for line in header(text))
    assert all(any(line.startswith(f"# {word}") for line in header(text)) for word in EXPECTATIONS)
    assert f"# command: make recipe NAME={name} && make demo" in header(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_which_weights_of_a_loss_it_needs(name: str) -> None:
    loss = Recipe(name, ROOT).data["train_autoencoder"]["source"].get("reconstruction") or {}
    weights = (loss.get("perceptual") or {}).get("weights")
    assert weights is None or any(weights in line for line in header(params_of(name)))


def test_stable_diffusion_of_a_single_file_needs_to_be_vouched_for_in_full() -> None:
    text = " ".join(line.removeprefix("# ") for line in header(params_of("stable-diffusion")))
    assert f"may_differ to [{', '.join(get_args(Trait))}]" in text


@pytest.mark.parametrize("name", sorted({*NAMES} - {"default"}))
def test_a_recipe_holds_only_what_differs_from_the_default(name: str) -> None:
    def check_differs(default: Any, value: Any, where: str) -> None:
        assert value != default, where
        if isinstance(value, dict) and isinstance(default, dict) and "kind" not in value:
            for key in value:
                check_differs(default.get(key), value[key], f"{where}.{key}")

    check_differs(load(DEFAULT.read_text()), load((ROOT / f"recipes/{name}.yaml").read_text()), name)


@pytest.mark.parametrize("name", NAMES)
def test_dvc_writes_a_recipe_as_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(params_of(name))
    with modify_yaml(path):
        pass
    assert path.read_text() == params_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_changes_the_line_of_its_value_only(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(params_of(name))
    apply_overrides(path, ["sample.drawing.seed=4711"])
    lines = list(zip(params_of(name).splitlines(), path.read_text().splitlines(), strict=True))
    assert [after for before, after in lines if before != after] == ["    seed: 4711"]


# What is merged.

SMALL = """# The default.
# result: all

# Above the first section.
a:
  one: 1
  # Above a list.
  list:
  - 1

# Between two values of a list.
  - 2
  # Above a choice.
  choice:
    kind: x
    width: 3
    inner:
      deep: true
  nothing:
  last:
  - 3

# Above the last section.
b:
  text: '#fff'
"""


def small(root: Path, text: str) -> Recipe:
    """A recipe over `SMALL`."""
    (root / "recipes").mkdir(exist_ok=True)
    (root / "recipes/default.yaml").write_text(SMALL)
    (root / "recipes/mine.yaml").write_text(text)
    return Recipe("mine", root)


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("a: {one: 2}\n", "one: 1", "one: 2"),
        ("a:\n  one: 1.0\n", "one: 1", "one: 1.0"),
        ("a:\n  one: 1\n", "", ""),
        ("a: {list: [7]}\n", "  list:\n  - 1\n\n# Between two values of a list.\n  - 2\n", "  list:\n  - 7\n"),
        ("a: {last: [4, 5]}\n", "  - 3\n", "  - 4\n  - 5\n"),
        ("a: {last: }\n", "  last:\n  - 3\n", "  last:\n"),
        ("a: {nothing: {x: 1}}\n", "  nothing:\n", "  nothing:\n    x: 1\n"),
        ("b:\n  text: '#000'\n", "'#fff'", "'#000'"),
        ("a: {choice: {width: 4}}\n", "width: 3", "width: 4"),
        ("a: {choice: {kind: x, inner: {deep: false}}}\n", "deep: true", "deep: false"),
        (
            "a: {choice: {kind: y, width: 3}}\n",
            "    kind: x\n    width: 3\n    inner:\n      deep: true\n",
            "    kind: y\n    width: 3\n",
        ),
    ],
)
def test_lines_of_the_default_change_where_the_recipe_differs(tmp_path: Path, text: str, old: str, new: str) -> None:
    merged = small(tmp_path, f"# Mine.\n\n{text}")
    assert SMALL.count(old) == 1 or not old
    assert merged.text() == SMALL.replace(old, new).replace("# The default.\n# result: all\n", "# Mine.\n")
    assert merged.data == load(merged.text())


def test_a_recipe_without_a_header_gets_one(tmp_path: Path) -> None:
    text = small(tmp_path, "b: {text: x}\n").text()
    assert header(text) == [f"# {tmp_path}/recipes/mine.yaml, over {tmp_path}/recipes/default.yaml"]


def test_random_recipes_change_what_they_say_and_keep_all_comments(tmp_path: Path) -> None:
    """Values are put into the default one by one, instead of a merge of two mappings."""
    numbers = random.Random(0)
    (tmp_path / "recipes").mkdir()
    num_chosen = 0
    for _ in range(100):
        default = {f"section{i}": {"first": 0} | a_mapping(numbers, 3) for i in range(3)}
        text = re.sub(r"^section", r"\n# Above.\n\g<0>", dumps_yaml(default), flags=re.MULTILINE)
        (tmp_path / "recipes/default.yaml").write_text(f"# The default.\n{text}")
        own: dict[str, Any] = {}
        chosen: list[tuple[str, ...]] = []
        for keys in numbers.sample(list(places(default)), 4):
            if keys[-1] == "kind" or any(keys[: len(one)] == one or one[: len(keys)] == keys for one in chosen):
                continue
            chosen.append(keys)
            value = a_value(numbers, 1)
            if isinstance(value, dict):
                value["kind"] = "another"
            put(own, keys, value)
            put(default, keys, value)
        num_chosen += len(chosen)
        (tmp_path / "recipes/mine.yaml").write_text(dumps_yaml(own))
        merged = Recipe("mine", tmp_path)
        assert merged.data == default
        assert load(merged.text()) == default
        assert merged.text().count("\n\n# Above.\nsection") == 3
    assert num_chosen > 200


def a_mapping(numbers: random.Random, depth: int) -> dict[str, Any]:
    return {key: a_value(numbers, depth) for key in ("p", "q", "r") if numbers.random() < 0.8} | {"kind": "x"}


def a_value(numbers: random.Random, depth: int) -> Any:
    if depth and numbers.random() < 0.4:
        return a_mapping(numbers, depth - 1)
    return numbers.choice([None, True, 3, 0.5, "x y", "#a", [], [1, 2], [{"k": 1, "l": [2]}, {"k": [2]}]])


def places(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Of all values within a section."""
    for key, value in values.items():
        if above:
            yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def put(values: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    values[keys[-1]] = value


# What is refused.


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in a path with spaces."""
    root = tmp_path / "my own project" / "ré"
    shutil.copytree(ROOT / "recipes", root / "recipes")
    for name in ("params.yaml", "paths.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    monkeypatch.chdir(root)
    git("init", "--quiet")
    git("add", "--all")
    commit()
    return root


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


def commit() -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    git(*who, "commit", "--quiet", "--all", "--message", "state")


def edit() -> bytes:
    text = setting(machine__threads=7)(Path("params.yaml").read_text())
    Path("params.yaml").write_text(text)
    return text.encode()


def findings(text: str) -> list[str]:
    """What is wrong with a recipe, without fixes."""
    Path("mine.yaml").write_text(text)
    before = Path("params.yaml").read_bytes()
    with pytest.raises(ConfigError) as caught:
        recipe.write("mine.yaml")
    assert Path("params.yaml").read_bytes() == before
    return str(caught.value).splitlines()[::2]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("sample:\n  batch_sise: 3\n", "mine.yaml:2: sample.batch_sise: unknown key; "),
        ("sampel:\n  batch_size: 3\n", "mine.yaml:1: sampel: unknown section; "),
        ("\nsample:\n  batch_size: 0\n", "mine.yaml:3: sample.batch_size: found 0; "),
        ("sample:\n", "mine.yaml:1: sample: found null; "),
        ("paths:\n  runs: x\n", "mine.yaml:1: paths: section in the wrong file; expected it in paths.yaml"),
        ("a: [\n", "mine.yaml:2: "),
        ("", "mine.yaml:1: no sections; "),
    ],
)
def test_a_mistake_is_named_with_the_line_of_the_recipe(here: Path, text: str, finding: str) -> None:
    (line,) = findings(text)
    assert line.startswith(finding)


def test_another_kind_needs_all_of_its_keys(here: Path) -> None:
    lines = findings("prepare:\n  corpus:\n    kind: openmoji\n    seed: 3\n")
    assert all(re.match(r"mine.yaml:2: prepare.corpus.\w+: missing; ", line) for line in lines)
    assert {line.split(": ")[1] for line in lines} > {"prepare.corpus.background", "prepare.corpus.val_fraction"}


def test_a_value_of_the_default_that_does_not_go_with_the_recipe_is_named_as_such(here: Path) -> None:
    lines = findings("prepare:\n  image_size_px: 128\n\ntrain_unet:\n  num_pictures: 8\n")
    assert lines[0].startswith("mine.yaml:4: train_unet.network.latent_size (as in the default): found 8; expected 16")


@pytest.mark.parametrize(("name", "near"), [("opnmoji", "openmoji"), ("tiny.yaml", "tiny"), ("a/b", "")])
def test_an_unknown_name_names_the_recipes(here: Path, name: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.write(name)
    line, fix = str(caught.value).splitlines()
    assert line.startswith(f"{name}: no such recipe; expected one of default, ")
    assert all(other in line for other in NAMES) and line.endswith(f"; nearest: {near}" if near else "of a file")
    assert fix == f"fix: {f'write {near}, if that is meant' if near else '`ldm recipe` lists them'}"


def test_elsewhere_the_place_to_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^recipes/default.yaml: no such file; .*\nfix: run from the repository"):
        recipe.write("tiny")
    assert cli.main(["recipe"]) == 2
    assert capsys.readouterr().err.startswith("recipes: no recipe; expected those of a repository\nfix: run from the")


# What is written over.


def test_recipes_follow_each_other_and_the_default_comes_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("params.yaml").read_bytes()
    for name in ("tiny", "openmoji", "folder"):
        assert cli.main(["recipe", name]) == 0
        assert Path("params.yaml").read_text() == params_of(name)
        assert cli.main(["check"]) == 0
    assert cli.main(["recipe", "default"]) == 0
    assert Path("params.yaml").read_bytes() == before
    assert capsys.readouterr().out.startswith("params.yaml is written from recipes/")
    assert [path.name for path in here.iterdir() if path.is_file()].count(".params.yaml.new") == 0


def test_edits_are_written_over_only_by_force_or_once_they_are_committed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = edit()
    for prepare in (lambda: None, lambda: git("add", "params.yaml")):
        prepare()
        assert cli.main(["recipe", "tiny"]) == 2
        line, fix = capsys.readouterr().err.splitlines()
        assert line.startswith("params.yaml: edits that are in no commit and in no recipe; expected none")
        assert "--force" in fix and "FORCE=1" in fix
        assert Path("params.yaml").read_bytes() == edited
    commit()
    recipe.write("tiny")
    edit()
    recipe.write("tiny", force=True)
    assert Path("params.yaml").read_text() == params_of("tiny")


def test_a_full_disk_leaves_the_params_that_were_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = sorted(here.iterdir()), Path.write_text

    def cut(path: Path, text: str, **options: Any) -> None:
        real(path, text[:100], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="No space left"):
        recipe.write("tiny")
    assert Path("params.yaml").read_bytes() == DEFAULT.read_bytes() and sorted(here.iterdir()) == before


@pytest.mark.parametrize("overlooked", ["--skip-worktree", "--assume-unchanged"])
def test_edits_that_git_was_told_to_overlook_are_edits(here: Path, overlooked: str) -> None:
    git("update-index", overlooked, "params.yaml")
    edited = edit()
    with pytest.raises(ConfigError, match="in no commit"):
        recipe.write("tiny")
    assert Path("params.yaml").read_bytes() == edited


def test_params_that_git_converts_are_those_of_the_commit(here: Path) -> None:
    Path(".gitattributes").write_text("params.yaml text eol=crlf\n")
    edit()
    commit()
    Path("params.yaml").unlink()
    git("checkout", "--quiet", "params.yaml")
    assert b"\r\n" in Path("params.yaml").read_bytes()
    recipe.write("tiny")
    assert Path("params.yaml").read_text() == params_of("tiny")


def test_params_whose_line_ends_git_would_convert_are_those_of_the_commit(here: Path) -> None:
    edit()
    commit()
    git("config", "core.autocrlf", "true")
    recipe.write("tiny")
    assert Path("params.yaml").read_text() == params_of("tiny")


def test_params_that_git_does_not_track_are_edits_unless_a_recipe_made_them(here: Path) -> None:
    git("rm", "--quiet", "--cached", "params.yaml")
    commit()
    recipe.write("tiny")
    edited = edit()
    git("config", "status.showUntrackedFiles", "no")
    for ignored in ("", "params.yaml\n"):
        Path(".gitignore").write_text(ignored)
        with pytest.raises(ConfigError, match="in no commit"):
            recipe.write("tiny")
    shutil.rmtree(".git")
    with pytest.raises(ConfigError, match="in no commit"):
        recipe.write("tiny")
    assert Path("params.yaml").read_bytes() == edited
    Path("params.yaml").unlink()
    recipe.write("tiny")
    recipe.write("openmoji")


def test_a_recipe_may_be_any_file(here: Path) -> None:
    (here / "of our team").mkdir()
    Path("of our team/mine.yaml").write_text("# Ours.\n\nsample: {batch_size: 8}\n")
    recipe.write("of our team/mine.yaml")
    text = DEFAULT.read_text().replace("\n  batch_size: 64\n  num_prompts", "\n  batch_size: 8\n  num_prompts")
    assert Path("params.yaml").read_text() == text.replace("\n".join(header(text)), "# Ours.")


def test_params_of_an_older_code_get_what_the_default_has_since_gained(here: Path) -> None:
    older = [line for line in edit().decode().splitlines() if "num_grid_rows" not in line]
    Path("params.yaml").write_text("\n".join([*older, ""]))
    commit()
    with pytest.raises(ConfigError, match=r"sample.num_grid_rows: missing"):
        check.params_file()
    recipe.write("params.yaml")
    assert load(Path("params.yaml").read_text()) == load(setting(machine__threads=7)(DEFAULT.read_text()))


def test_the_help_and_the_list_say_what_each_recipe_gives_and_needs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["recipe"]) == 0
    listed = capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["recipe", "--help"])
    assert listed.strip() in capsys.readouterr().out
    parts = listed.strip().split("\n\n")
    assert [part.splitlines()[0] for part in parts] == ["default", *sorted({*NAMES} - {"default"})]
    assert all(word in part for part in parts for word in EXPECTATIONS)


def test_a_recipe_is_checked_over_the_default(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "recipes/tiny.yaml"]) == 0
    assert "recipes/tiny.yaml is complete and consistent (shapes, 32 px)" in capsys.readouterr().out
    shutil.copy("recipes/tiny.yaml", "elsewhere.yaml")
    assert cli.main(["check", "elsewhere.yaml"]) == 2
    assert "elsewhere.yaml:1: embed_text: section missing" in capsys.readouterr().err


def test_dvc_takes_paths_from_their_file_whatever_the_recipe(here: Path) -> None:
    recipe.write("tiny")
    subprocess.run(["dvc", "init", "--quiet"], check=True)
    Path("paths.yaml").write_text(Path("paths.yaml").read_text().replace("data/unet\n", "data/other\n"))
    with Repo() as repo:
        outs = {Path(out.fs_path).relative_to(here).as_posix() for out in repo.index.outs}
    paths = set(load(Path("paths.yaml").read_text())["paths"].values())
    assert "data/other" in outs and outs == paths - {"data/source", "data/models", "runs", "data/unet_averaged"}
    Path("params.yaml").write_text(f"paths:\n  unet: data/unet\n{Path('params.yaml').read_text()}")
    with Repo() as repo, pytest.raises(DvcException, match=r"paths\.unet"):
        _ = repo.index.outs
    with pytest.raises(ConfigError, match=r"^params.yaml:1: paths: section in the wrong file; expected it in paths"):
        check.params_file()
