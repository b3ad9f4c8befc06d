"""What each stage imports and opens while it runs, beside what dvc.yaml says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.import_closure import ROOT, expanded, has_code
from tests.repository import Repository

TRACED = """
import json, os, runpy, sys
opened = set()
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        # A name below a folder's descriptor, as rmtree uses them, is no path from here.
        if os.path.isabs(os.fsdecode(arguments[0])) or os.path.lexists(path):
            opened.add(path)
sys.addaudithook(hook)
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
modules = [m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "ldm" and m.__file__]
root = os.getcwd() + "/"
inside = [sorted({p.removeprefix(root) for p in paths if p.startswith(root)}) for paths in (opened, modules)]
print("TRACE", json.dumps(inside))
"""
STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.fixture(scope="module")
def copy(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return repository.copy(tmp_path_factory.mktemp("traced") / "copy")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_uses_nothing_that_is_not_declared(copy: Repository, name: str) -> None:
    script = f"stages/{name}.py"
    assert STAGES[name]["cmd"].endswith(script)
    said = copy.run(Path(sys.executable).name, "-c", TRACED, script)
    opened, modules = json.loads(next(line for line in said.splitlines() if line.startswith("TRACE"))[6:])
    paths: dict[str, str] = YAML(typ="safe").load((copy.root / "paths.yaml").read_text())["paths"]
    folders = {f"${{paths.{key}}}": value for key, value in paths.items()}
    deps = [folders.get(dep, dep) for dep in STAGES[name]["deps"]]
    outs = [folders[out if isinstance(out, str) else next(iter(out))] for out in STAGES[name].get("outs", [])]
    files = expanded([dep for dep in STAGES[name]["deps"] if not dep.startswith("${")], copy.root)
    assert modules and {module for module in modules if has_code(copy.root / module)} <= set(files)
    building = [str(Path(out).with_name(f".{Path(out).name}.{state}")) for out in outs for state in ("building", "old")]
    allowed = [*deps, *outs, *building, "params.yaml", "paths.yaml", f"{paths['runs']}/{name}"]
    files = [path for path in opened if "__pycache__" not in path and (copy.root / path).suffix != ".pyc"]
    declared = [path for path in files if any(path == a or path.startswith(f"{a}/") for a in allowed)]
    undeclared = [path for path in files if path not in declared and has_code(copy.root / path)]
    assert undeclared == []
    assert "params.yaml" in files
