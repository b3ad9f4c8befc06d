"""Recipes: each holds only what differs from the default params. `ldm recipe` writes params.yaml from one of them."""

import copy
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ldm.core import config, plain_yaml
from ldm.core.config import PARAMS, Loc
from ldm.core.errors import ConfigError
from ldm.tools.check import check

Keys = tuple[str, ...]
"""Location of a value: the keys on the path to it."""
FOLDER = Path("recipes")
DEFAULT = "default"


class Recipe(config.Document):
    """The default params, overridden by the values of a recipe: a complete params file.

    Mappings are merged key by key. A list replaces the default's list as a whole, and so does a mapping of another
    `kind`. Errors name lines of the recipe, since that is the file to change; a value that the recipe does not hold is
    reported as the default's.

    Args:
        name: a file of recipes/ without its ending, or the path of any other file.
        root: the repository, which contains recipes/.

    Raises:
        ConfigError: there is no such recipe, or it is not YAML as a params file needs it.
    """

    def __init__(self, name: str, root: Path = Path()) -> None:
        self._default = config.Document(root / FOLDER / f"{DEFAULT}.yaml")
        super().__init__(_path(name, root))
        self._own = self.data
        self._changes = dict(_changes(self._default.data, self._own))
        self.data = copy.deepcopy(self._default.data)
        for (*parents, key), value in self._changes.items():
            owner = self.data
            for parent in parents:
                owner = owner[parent]
            owner[key] = value

    def where(self, loc: Loc) -> str:
        """`file:line: dotted.key`, with a remark if the value is the default's."""
        is_default = _holds(self.data, loc) and not _holds(self._own, loc)
        return f"{super().where(loc)}{' (as in the default)' if is_default else ''}"

    def text(self) -> str:
        """The params file to write: the recipe's header, then the default's lines, order and comments, with changed
        values in block style, as DVC writes them.

        All keys must be those of the default, which `check.whole` ensures.
        """
        assert all(_holds(self._default.data, keys) for keys in self._changes), "not checked"
        lines = self._default.path.read_text(encoding="utf-8").splitlines()
        num_header_lines = len(_header(lines))
        # From the last line to the first, because a change moves the lines below it.
        for start, keys in sorted(((self._default.line_of(keys) - 1, keys) for keys in self._changes), reverse=True):
            lines[start : _end(lines, start)] = _block(keys, self._changes[keys])
        header = _header(self.path.read_text(encoding="utf-8").splitlines())
        header = header or [f"# {self.path}, over {self._default.path}"]
        text = "\n".join([*header, *lines[num_header_lines:], ""])
        assert plain_yaml.load(text, PARAMS)[1] == self.data, f"{self._default.path} is not in block style"
        return text


def document(path: Path) -> config.Document:
    """Read a params file; a file in recipes/ is read as a recipe, over the default."""
    is_recipe = path.resolve().parent == FOLDER.resolve()
    return Recipe(str(path)) if is_recipe else config.Document(path)


def complete(name: str) -> str:
    """The validated params file of a recipe. ConfigError: lists every finding, as in `check.whole`."""
    recipe = Recipe(name)
    check.whole(recipe)
    return recipe.text()


def write(name: str, force: bool = False) -> str:
    """Write params.yaml from a recipe; returns a line that reports it. force: overwrite edits that would be lost.

    Raises:
        ConfigError: params.yaml was edited since it was committed or written from a recipe, and `force` is false; or
            there is no such recipe, or something is wrong with it. Nothing is written then.
    """
    text = complete(name)
    if not (force or _can_come_back()):
        found, expected = "edits that are in no commit and in no recipe", "none, since they would be lost"
        raise ConfigError(str(PARAMS), found, expected, "commit it, or add --force (make recipe NAME=... FORCE=1)")
    new = PARAMS.with_name(f".{PARAMS.name}.new")
    try:
        new.write_text(text, encoding="utf-8", newline="\n")
        new.replace(PARAMS)
    finally:
        new.unlink(missing_ok=True)
    return f"{PARAMS} is written from {_path(name, Path())}; `dvc repro` runs it"


def names(root: Path = Path()) -> list[str]:
    """All recipes of a repository, the default first."""
    found = sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))
    return sorted(found, key=lambda name: name != DEFAULT)


def listing() -> str:
    """Every recipe with its header, which describes what it is, gives and needs; empty outside a repository."""
    parts: list[str] = []
    for name in names():
        lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8", errors="replace").splitlines()
        parts.append("\n".join([name, *(f" {line[1:].rstrip()}" for line in _header(lines))]))
    return "\n\n".join(parts)


def _path(name: str, root: Path) -> Path:
    is_path = "/" in name or name.endswith(".yaml")
    path = Path(name) if is_path else root / FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = get_close_matches(name, names(root), 1)
        expected = f"one of {', '.join(names(root))}, or the path of a file{f'; nearest: {near[0]}' if near else ''}"
        fix = f"write {near[0]}, if that is meant" if near else "`ldm recipe` lists them"
        raise ConfigError(name, "no such recipe", expected, fix)
    return path


def _changes(default: Mapping[str, Any], values: Mapping[str, Any], keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Locations at which `values` differ from the default, with their new values."""
    for key, value in values.items():
        if _are_merged(default.get(key), value):
            yield from _changes(default[key], value, (*keys, key))
        elif key not in default or json.dumps(default[key], default=str) != json.dumps(value, default=str):
            yield (*keys, key), value


def _are_merged(default: Any, value: Any) -> bool:
    """Whether two values are mappings of the same kind. A recipe need not repeat the kind."""
    if not (isinstance(default, dict) and isinstance(value, dict)):
        return False
    kind: object = default.get("kind")
    return value.get("kind", kind) == kind


def _holds(data: Any, loc: Loc) -> bool:
    """Whether there is a value at a location."""
    try:
        for part in loc:
            data = data[part]
    except (LookupError, TypeError):
        return False
    return True


def _header(lines: list[str]) -> list[str]:
    """The comment lines at the top."""
    return lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]


def _end(lines: list[str], start: int) -> int:
    """The line after the value of a key in block style. The value ends before the next line that is not indented more,
    and before the empty lines and comments above that line. A list may have the same indentation as its key."""
    depth, end = _depth(lines[start]), start + 1
    for i, line in enumerate(lines[end:], end):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if _depth(line) < depth or (_depth(line) == depth and not line.lstrip().startswith("- ")):
            break
        end = i + 1
    return end


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _block(keys: Keys, value: Any) -> list[str]:
    """Lines of one key and its value, in block style."""
    from dvc.utils.serialize import dumps_yaml

    return [f"{'  ' * (len(keys) - 1)}{line}" for line in dumps_yaml({keys[-1]: value}).splitlines()]


def _can_come_back() -> bool:
    """Whether the present params.yaml can be restored, from git or from a recipe."""
    return not PARAMS.exists() or _is_committed() or any(_is_from(name) for name in names())


def _is_committed() -> bool:
    """Whether the present params.yaml is that of the last commit, but for line ends that git converts."""
    # `git status` says nothing of edits in a file that git was told to overlook (--skip-worktree).
    commands = ["git", "rev-parse", f"HEAD:./{PARAMS}"], ["git", "hash-object", "--path", str(PARAMS), str(PARAMS)]
    with suppress(OSError):  # without git, there is no commit
        committed, present = (subprocess.run(each, capture_output=True, check=False) for each in commands)
        return committed.returncode == 0 and committed.stdout == present.stdout
    return False


def _is_from(name: str) -> bool:
    with suppress(ConfigError):
        return complete(name).encode() == PARAMS.read_bytes()
    return False
