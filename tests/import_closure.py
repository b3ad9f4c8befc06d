"""The static import closure of a stage script and the params sections it reads; `python -m tests.import_closure` writes
both into dvc.yaml. DVC does not follow imports, so dvc.yaml must list what a stage runs."""

import ast
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
NOT_LISTED = {"paths", "machine"}  # paths reach dvc.yaml by templating; machine must not change a result


def closure(script: Path, root: Path = ROOT) -> list[str]:
    """The script and every file of `ldm` that it imports, directly or not, at module level or in a function; weights
    beside a module, under its name, belong to it. What holds no code, as most `__init__.py`, is left out."""
    found: dict[str, None] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(root).as_posix()
        if name not in found:
            found[name] = None
            weights = path.with_suffix(".safetensors")
            if weights.is_file():
                found[weights.relative_to(root).as_posix()] = None
            waiting += imported_files(path, root)
    found = {name: None for name in found if has_code(root / name)}
    return sorted(found, key=lambda name: (not name.startswith("stages/"), name))


def covered(files: list[str], root: Path = ROOT) -> list[str]:
    """The same files as the fewest entries: a folder of `ldm` in place of its files where all of them are there."""
    wanted = set(files)
    folders = [path.parent for path in root.joinpath("ldm").rglob("__init__.py") if path.parent != root / "ldm"]
    for folder in sorted(folders):
        inside = {path.relative_to(root).as_posix() for path in tracked(folder) if has_code(path)}
        if inside <= wanted:
            wanted = (wanted - inside) | {folder.relative_to(root).as_posix()}
    return [name for name in files if name in wanted] + sorted(wanted - set(files))


def expanded(entries: list[str], root: Path = ROOT) -> list[str]:
    """The files that entries of dvc.yaml stand for."""
    paths = [root / entry for entry in entries]
    files = [file for path in paths for file in (tracked(path) if path.is_dir() else [path])]
    return [file.relative_to(root).as_posix() for file in files if has_code(file)]


def has_code(path: Path) -> bool:
    """Whether a file is more than a docstring."""
    if path.suffix != ".py":
        return path.name != "py.typed"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def tracked(folder: Path) -> list[Path]:
    """Files of a folder as DVC sees them, which ignores what Python leaves there."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def imported_files(path: Path, root: Path = ROOT) -> list[Path]:
    """The files of `ldm` that one file imports, packages' `__init__` included; type-only ones are not run."""
    package = path.relative_to(root).with_suffix("").parts
    files: dict[Path, None] = {}
    for node in _runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        for module in _modules(node, package):
            for file in _files(module, root):
                files[file] = None
    return list(files)


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


def stage_scripts(root: Path = ROOT) -> dict[str, Path]:
    """Stage name -> script, for every stage of dvc.yaml."""
    stages = YAML(typ="safe", pure=True).load((root / "dvc.yaml").read_text())["stages"]
    return {name: root / "stages" / f"{name}.py" for name in stages}


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield node
        yield from _runtime_nodes(node)


def _modules(node: ast.AST, importer: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that an import statement may load; a symbol of a module is among them and matches no file."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(importer[: -node.level]) if node.level else ""
        module = ".".join(part for part in (base, node.module) if part)
        yield module
        yield from (f"{module}.{alias.name}" for alias in node.names)


def _files(module: str, root: Path) -> Iterator[Path]:
    parts = module.split(".")
    if parts[0] != "ldm":
        return
    for depth in range(1, len(parts) + 1):
        stem = root.joinpath(*parts[:depth])
        for file in (stem / "__init__.py", stem.with_suffix(".py")):
            if file.is_file():
                yield file


def refreshed(root: Path = ROOT) -> str:
    """dvc.yaml with every stage's code deps and params as they should be; data deps (templated) stay as they are."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document: Any = yaml.load((root / "dvc.yaml").read_text(encoding="utf-8"))
    for name, script in stage_scripts(root).items():
        stage = document["stages"][name]
        if script.is_file():
            stage["deps"][:] = covered(closure(script, root), root) + [
                dep for dep in stage["deps"] if dep.startswith("${")
            ]
            stage["params"][:] = sections(script)
    text = StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def main() -> None:
    """Rewrite dvc.yaml."""
    text, path = refreshed(), ROOT / "dvc.yaml"
    changed = text != path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    print("dvc.yaml rewritten" if changed else "dvc.yaml was up to date")


if __name__ == "__main__":
    main()
