"""What each stage imports and opens while it runs, beside what dvc.yaml says."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.import_closure import ROOT, expanded, has_code
from tests.repository import Repository, traces_of

STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_uses_nothing_that_is_not_declared(repository: Repository, name: str) -> None:
    root = repository.root
    opened, modules = json.loads((traces_of(repository) / f"{name}.json").read_text())
    paths: dict[str, str] = YAML(typ="safe").load((root / "paths.yaml").read_text())["paths"]
    folders = {f"${{paths.{key}}}": value for key, value in paths.items()}
    deps = [folders.get(dep, dep) for dep in STAGES[name]["deps"]]
    outs = [folders[out if isinstance(out, str) else next(iter(out))] for out in STAGES[name].get("outs", [])]
    files = expanded([dep for dep in STAGES[name]["deps"] if not dep.startswith("${")], root)
    assert modules and {module for module in modules if has_code(root / module)} <= set(files)
    building = [str(Path(out).with_name(f".{Path(out).name}.{state}")) for out in outs for state in ("building", "old")]
    # A training compares its losses with the band of a known run, and only says when they leave it.
    allowed = [*deps, *outs, *building, "params.yaml", "paths.yaml", f"{paths['runs']}/{name}", "recipes/bands"]
    files = [path for path in opened if "__pycache__" not in path and (root / path).suffix != ".pyc"]
    declared = [path for path in files if any(path == a or path.startswith(f"{a}/") for a in allowed)]
    undeclared = [path for path in files if path not in declared and has_code(root / path)]
    assert undeclared == []
    assert "params.yaml" in files
