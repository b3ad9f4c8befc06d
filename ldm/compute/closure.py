"""The code that a script runs: the files that it imports, directly or indirectly, found from import statements.

dvc.yaml lists these files as the code that a stage depends on (`make deps`). A saved state depends on them too.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PACKAGES = ("ldm", "studies")
"""Packages of this repository that scripts import; no stage imports the second."""


def files_of(script: Path, root: Path) -> list[str]:
    """The script and every file of `ldm` and `studies` that it imports, relative to `root`, with the script first.

    Imports count if they are direct or indirect, at module level or in a function. Weights beside a module, with the
    same name, belong to it. Files without code, such as most `__init__.py`, are left out.
    """
    found: dict[str, None] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(root).as_posix()
        if name not in found:
            found[name] = None
            weights = path.with_suffix(".safetensors")
            waiting += [*imported_files(path, root), *([weights] if weights.is_file() else [])]
    with_code = [name for name in found if has_code(root / name)]
    return sorted(with_code, key=lambda name: (not name.startswith("stages/"), name))


def has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    if path.suffix != ".py":
        return path.name != "py.typed"
    body = tree_of(path.read_bytes()).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def imported_files(path: Path, root: Path) -> list[Path]:
    """The files of `ldm` and `studies` that one file imports, including `__init__` of packages, but without imports for
    type checking."""
    package = path.relative_to(root).with_suffix("").parts
    modules = _modules_of(path.read_bytes(), package) if path.suffix == ".py" else ()
    return list(dict.fromkeys(file for module in modules for file in _files(module, root)))


@cache
def tree_of(source: bytes) -> ast.Module:
    """The syntax tree of a file without its docstrings: of the module, classes, functions and attributes."""
    tree = ast.parse(source)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_text(line)]  # pyright: ignore[reportAttributeAccessIssue]
        waiting += _inner_statements(node)
    return tree


@cache
def _modules_of(source: bytes, importer: tuple[str, ...]) -> tuple[str, ...]:
    """Dotted names of modules that a source imports, or may import."""
    return tuple(name for node in _runtime_statements(tree_of(source)) for name in _modules(node, importer))


def _runtime_statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in _inner_statements(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from _runtime_statements(child)


def _inner_statements(node: ast.AST) -> list[ast.AST]:
    """The statements directly within one, and its parts that hold some. Expressions hold none, and are most of it."""
    return [child for name in ("body", "handlers", "cases", "orelse", "finalbody") for child in getattr(node, name, ())]


def _is_text(line: ast.stmt) -> bool:
    """Whether a statement is a string that is not used."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _modules(node: ast.AST, importer: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that an import statement may load. Symbols of a module are included; they match no file."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(importer[: -node.level]) if node.level else ""
        module = ".".join(part for part in (base, node.module) if part)
        yield module
        yield from (f"{module}.{alias.name}" for alias in node.names)


def _files(module: str, root: Path) -> Iterator[Path]:
    parts = module.split(".")
    if parts[0] not in _PACKAGES:
        return
    for depth in range(1, len(parts) + 1):
        stem = root.joinpath(*parts[:depth])
        for file in (stem / "__init__.py", stem.with_suffix(".py")):
            if file.is_file():
                yield file
