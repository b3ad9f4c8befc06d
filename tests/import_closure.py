"""The code that a stage script runs and the params sections that it reads; `python -m tests.import_closure` writes both
into dvc.yaml, and the code of each script of studies/dvc.yaml and optional/dvc.yaml into those. DVC does not follow
imports, so these files must list what a stage runs."""

import ast
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ldm.compute.closure import files_of, has_code

ROOT = Path(__file__).resolve().parents[1]
PIPELINE, STUDIES, OPTIONAL = "dvc.yaml", "studies/dvc.yaml", "optional/dvc.yaml"
QUICK = {"check", "model", "average_unet"}
"""Stages that take seconds and on which no other stage waits: of a package that they use in good part, they list the
folder, since a run too many costs less than twenty rows."""
NOT_LISTED = {"paths", "machine"}  # paths reach dvc.yaml by templating; machine must not change a result


def covered(files: list[str], root: Path = ROOT, is_quick: bool = False) -> list[str]:
    """The same files as the fewest entries: a folder of `ldm` in place of its files where all of them are there, or for
    a quick stage three of its own."""
    wanted = set(files)
    folders = [path.parent for path in root.joinpath("ldm").rglob("__init__.py") if path.parent != root / "ldm"]
    for folder in sorted(folders):
        inside = {path.relative_to(root).as_posix() for path in tracked(folder) if has_code(path)}
        num_own = sum((root / name).parent == folder for name in wanted)
        if inside <= wanted or (is_quick and num_own >= 3):
            wanted = (wanted - inside) | {folder.relative_to(root).as_posix()}
    return [name for name in files if name in wanted] + sorted(wanted - set(files))


def expanded(entries: list[str], root: Path = ROOT) -> list[str]:
    """The files that entries of dvc.yaml stand for."""
    paths = [root / entry for entry in entries]
    files = [file for path in paths for file in (tracked(path) if path.is_dir() else [path])]
    return [file.relative_to(root).as_posix() for file in files if has_code(file)]


def tracked(folder: Path) -> list[Path]:
    """Files of a folder as DVC sees them, which ignores what Python leaves there."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def sections(script: Path) -> list[str]:
    """Names of the params sections that a script reads by `config.read(Model, "name")`, or all if it checks them."""
    names: list[str] = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if (owner, node.func.attr) == ("config", "read"):
                name = node.args[1]
                assert isinstance(name, ast.Constant), f"{script}:{node.lineno}: name the section in place"
                names.append(str(name.value))
            elif (owner, node.func.attr) == ("check", "params_file"):
                from ldm.tools.check.check import SECTIONS

                names += SECTIONS
    return [name for name in dict.fromkeys(names) if name not in NOT_LISTED]


def stage_scripts(root: Path = ROOT, pipeline: str = PIPELINE) -> dict[str, Path]:
    """Stage name -> script, for every stage of a pipeline."""
    stages = YAML(typ="safe", pure=True).load((root / pipeline).read_text())["stages"]
    folder = root / "stages" if pipeline == PIPELINE else (root / pipeline).parent
    return {name: folder / f"{name}.py" for name in stages}


def refreshed(root: Path = ROOT, pipeline: str = PIPELINE) -> str:
    """A pipeline with every stage's code deps as they should be, and the params of dvc.yaml; data deps (templated) stay
    as they are, and so do the params of the others, which read those of two files."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document: Any = yaml.load((root / pipeline).read_text(encoding="utf-8"))
    for name, script in stage_scripts(root, pipeline).items():
        stage = document["stages"][name]
        if script.is_file():
            stage["deps"][:] = covered(files_of(script, root), root, name in QUICK) + [
                dep for dep in stage["deps"] if dep.startswith("${")
            ]
            if pipeline == PIPELINE:
                stage["params"][:] = sections(script)
    text = StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def main() -> None:
    """Rewrite all pipelines."""
    for pipeline in (PIPELINE, STUDIES, OPTIONAL):
        text, path = refreshed(ROOT, pipeline), ROOT / pipeline
        changed = text != path.read_text(encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        print(f"{pipeline} rewritten" if changed else f"{pipeline} was up to date")


if __name__ == "__main__":
    main()
