"""Pages of the site that are made from the code: every key of the params, every command, every module."""

import argparse
import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from ldm.core import config, plain_yaml
from ldm.core.config import Section, is_beside
from ldm.core.params import PathsParams
from ldm.tools import cli
from ldm.tools.check.sections import SECTIONS
from ldm.tools.cli import options

ROOT = Path(__file__).resolve().parents[1]
PAGES: dict[str, type[Section]] = {"paths": PathsParams, **SECTIONS}
"""Sections that have a page."""
_UNITS = {
    "_px": "pixels",
    "_seconds": "seconds",
    "_seconds_per_sample": "seconds",
    "_days": "days",
    "_steps": "updates",
    "_bytes": "bytes",
    "_tokens": "tokens",
    "_fraction": "share, 1 = all",
    "max_share": "share, 1 = all",
    "num_steps": "updates of a training, or steps of a sampler",
}
"""By how the name of a key ends; the longest end counts. All other numbers are counts, or have no unit."""


def pages() -> dict[str, str]:
    """Markdown by path below docs/, of every page that is made from the code."""
    sections = {f"reference/params/{name}.md": params_page(name, model) for name, model in PAGES.items()}
    python = {_box_path(box): box_page(box) for box in boxes()}
    return {
        "reference/params/index.md": overview(),
        **sections,
        "reference/commands.md": commands_page(),
        "reference/python/index.md": python_page(),
        **python,
    }


def navigation() -> list[Any]:
    """The pages of the reference, as mkdocs wants them."""
    return [
        {"Params": ["reference/params/index.md", *({name: f"reference/params/{name}.md"} for name in PAGES)]},
        {"Commands": "reference/commands.md"},
        {"Python": ["reference/python/index.md", *({box: _box_path(box)} for box in boxes())]},
    ]


# Params


def overview() -> str:
    """What the sections are, and what each reruns."""
    rows = [f"| [`{name}`]({name}.md) | {_about(name)} | {_reruns(name)} |" for name in PAGES]
    about = (
        "Every value that runs is in `params.yaml`, a copy of `recipes/default.yaml` until you change it; where "
        "artefacts are is in `paths.yaml`. Each key is described here, from the class that reads it: its meaning, what "
        "it may be, and its value in the default. `ldm check` refuses everything else."
    )
    table = "\n".join(["| section | what | a change reruns |", "| --- | --- | --- |", *rows])
    return f"# Every key of the params\n\n{about}\n\n{table}\n"


def params_page(name: str, model: type[Section]) -> str:
    """A section with every key of it and of all kinds in it."""
    lines = [f"# Section `{name}`", f"{_about(name).rstrip('.')}.", f"**A change reruns:** {_reruns(name)}."]
    seen: dict[type[Section], str] = {}
    for key, part in _mappings(name, model):
        if part is not model:
            lines.append(f"## `{key}` {{ #{_anchor(key, part)} }}")
        if part in seen:
            lines.append(f"The same keys as [`{seen[part]}`](#{_anchor(seen[part], part)}).")
            continue
        seen[part] = key
        lines += [_text(part)] if part is not model else []
        if kind := _kind(part):
            lines.append(f"`kind: {kind}`{{ #{key}.kind }} in `{key.removesuffix(f'.{kind}')}`")
        lines += [line for field in part.model_fields if field != "kind" for line in _entry(key, part, field)]
    return "\n\n".join(lines) + "\n"


def _mappings(key: str, model: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """(where it stands, class) of a mapping and of all within it; a class that was met before is not entered again."""
    waiting, entered = [(key, model)], set[type[Section]]()
    while waiting:
        key, model = waiting.pop(0)
        yield key, model
        if model not in entered:
            entered.add(model)
            fields = {name: _sections(field.annotation) for name, field in model.model_fields.items()}
            waiting = [*((_below(key, name, part), part) for name, parts in fields.items() for part in parts), *waiting]


def _below(key: str, name: str, model: type[Section]) -> str:
    """The key of a mapping; where it has kinds, with the kind in the end."""
    return ".".join(filter(None, [key, name, _kind(model)]))


def _anchor(key: str, model: type[Section]) -> str:
    """Of the keys of a mapping; the key itself has its own name."""
    return key if _kind(model) else f"{key}-keys"


def _kind(model: type[Section]) -> str:
    """The kind of a class of params; empty if it has none."""
    return get_args(model.model_fields["kind"].annotation)[0] if "kind" in model.model_fields else ""


def _sections(annotation: Any) -> list[type[Section]]:
    """The params classes in a type, at any depth of it."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return list(dict.fromkeys(part for inner in get_args(annotation) for part in _sections(inner)))


def _entry(key: str, model: type[Section], name: str) -> list[str]:
    """A key: what it means, what it may be, and what it is in the default."""
    field, schema = model.model_fields[name], config.Schema(model)
    parts = _sections(field.annotation)
    values = re.sub(r"matching (\S+)", r"matching `\1`", schema.legal(schema.field(name)))
    if parts:
        links = [f"[{_kind(part) or 'a mapping'}](#{_anchor(_below(key, name, part), part)})" for part in parts]
        values = ", ".join(links) + (", or null" if values.endswith("null") else "")
    facts = [f"**Values:** {values}", *_unit(name, field.annotation), *_default(key, name, model)]
    if is_beside(field):
        facts.append("**No step depends on it:** a stopped run goes on after a change")
    text = options.docstrings(model).get(name) or " ".join(_text(part) for part in parts[:1])
    return [f"### `{name}` {{ #{key}.{name} }}", text, " · ".join(facts)]


def _unit(name: str, annotation: Any) -> list[str]:
    """Its unit, if it is a number that has one."""
    ends = sorted((end for end in _UNITS if name.endswith(end)), key=len)
    is_number = annotation is not bool and not _sections(annotation)
    return [f"**Unit:** {_UNITS[ends[-1]]}"] if ends and is_number else []


def _default(key: str, name: str, model: type[Section]) -> list[str]:
    """Its value in the default; of a kind that the default does without, an example from a recipe."""
    for file in _files():
        found = list(_values(file.data, key.split("."), model, name))
        if found:
            is_default = file.path.stem in ("default", "paths")
            where = "**Default:** " if is_default else f"**Example:** `recipes/{file.path.name}` has "
            value = found[0]
            if isinstance(value, dict) and _sections(model.model_fields[name].annotation):
                value = value.get("kind")  # its keys have places of their own
            shown = [f"{where}`{json.dumps(value, ensure_ascii=False)}`"]
            return shown if value is not None or found[0] is None else []
    return []


@cache
def _files() -> list[config.Document]:
    """The paths, the default, then all recipes."""
    recipes = sorted((ROOT / "recipes").glob("*.yaml"), key=lambda path: (path.stem != "default", path.stem))
    return [config.Document(path) for path in (ROOT / config.PATHS, *recipes)]


def _values(data: Any, path: list[str], model: type[Section], name: str) -> Iterator[Any]:
    """Values of a key in a params file. path: as `_below` makes it; a part may name the kind of a mapping."""
    if isinstance(data, list):
        for entry in data:
            yield from _values(entry, path, model, name)
    elif not isinstance(data, dict):
        return
    elif path and path[0] not in data and data.get("kind") == path[0]:
        yield from _values(data, path[1:], model, name)
    elif path and path[0] in data:
        yield from _values(data[path[0]], path[1:], model, name)
    elif not path and name in data:
        yield data[name]


def _about(name: str) -> str:
    """What a section is for: what its stage does, or what its class says."""
    stage = _stages().get(name)
    return stage["desc"] if stage else _text(PAGES[name])


def _text(model: type[Section]) -> str:
    return " ".join((model.__doc__ or "").split())


def _reruns(section: str) -> str:
    """The stages that run again after a change in a section, in words."""
    if section == "paths":
        return "the stages that read or write the folder"
    stages = _stages()
    found = [name for name, stage in stages.items() if section in _names(stage.get("params", []))]
    for name in found:  # it grows meanwhile
        made = set(_names(stages[name].get("outs", [])))
        found += [later for later, stage in stages.items() if later not in found and made & set(_names(stage["deps"]))]
    return ", ".join(f"`{name}`" for name in stages if name in found) or "nothing"


@cache
def _stages() -> dict[str, Any]:
    path = ROOT / "dvc.yaml"
    return plain_yaml.load(path.read_text(encoding="utf-8"), path)[1]["stages"]


def _names(entries: Iterable[str | Mapping[str, Any]]) -> list[str]:
    """Entries of dvc.yaml without their options."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


# Commands


def commands_page() -> str:
    """Every command of `ldm` with every option, from its parser."""
    (commands,) = (action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help for action in commands._choices_actions}
    parts = ["# Every command", "`ldm VERB --help` prints the same in the terminal."]
    for name, command in commands.choices.items():
        parts += _command(name, command, helps.get(name) or "")
    return "\n\n".join(parts) + "\n"


def _command(name: str, parser: argparse.ArgumentParser, about: str) -> list[str]:
    """A command: what it does, how it is called, what its options mean."""
    usage = parser.format_usage().removeprefix("usage: ").replace("\n       ", "\n").strip()
    actions = [action for action in parser._actions if "--help" not in action.option_strings]
    return [
        f"## `ldm {name}` {{ #{name} }}",
        _prose(parser.description or about),
        f"```text\n{usage}\n```",
        "\n".join(_option(parser, action) for action in actions),
        *([f"```text\n{parser.epilog.strip()}\n```"] if parser.epilog else []),
    ]


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An option or an argument, as a line of a list."""
    choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
    value = action.metavar if isinstance(action.metavar, str) else choices
    shown = f"{', '.join(action.option_strings)} {value if action.nargs != 0 else ''}".strip()
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return f"- `{shown}`: {_prose(text)}" if text else f"- `{shown}`"


def _prose(text: str) -> str:
    """Text of a help, of which nothing is Markdown."""
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")


# Python


def boxes() -> list[str]:
    """The packages of `ldm` that have a page, by path: those at the top, and those of the tools."""
    found = [path.parent for path in (ROOT / "ldm").glob("*/__init__.py")]
    found += [path.parent for path in (ROOT / "ldm/tools").glob("*/__init__.py")]
    return sorted(path.relative_to(ROOT / "ldm").as_posix() for path in found)


def module_path(module: str) -> str:
    """The page of a module, by its path from the root, such as ldm/core/stage.py."""
    parts = module.removeprefix("ldm/").split("/")
    box = "/".join(parts[: 2 if parts[0] == "tools" and len(parts) > 2 else 1])
    return _box_path(box) if box in boxes() else "reference/python/index.md"


def _box_path(box: str) -> str:
    return f"reference/python/{box.replace('/', '-')}.md"


def python_page() -> str:
    """What a user imports, and the packages."""
    texts = {box: _module_text(f"ldm/{box}/__init__.py") for box in boxes()}
    rows = [f"| [`{name_of(box)}`]({Path(_box_path(box)).name}) | {text} |" for box, text in texts.items()]
    table = "\n".join(["| package | what is in it |", "| --- | --- |", *rows])
    about = "What a program imports is `Pipeline`, by `from ldm import Pipeline`. Each package has a page of its own."
    return f"# Python\n\n{about}\n\n::: ldm.tools.pipeline\n\n## Packages\n\n{table}\n\n::: ldm.randomness\n"


def box_page(box: str) -> str:
    """Every module of a package."""
    inner = [f"ldm/{other}/" for other in boxes() if other.startswith(f"{box}/")]
    modules = [path.relative_to(ROOT).with_suffix("").as_posix() for path in sorted((ROOT / "ldm" / box).rglob("*.py"))]
    own = [name for name in modules if not name.startswith(tuple(inner)) and not name.endswith("__")]
    parts = [f"::: {name.replace('/', '.')}" for name in own if name != "ldm/tools/pipeline"]
    return "\n\n".join([f"# `{name_of(box)}`", _module_text(f"ldm/{box}/__init__.py"), *parts]) + "\n"


def name_of(box: str) -> str:
    """The name by which a package is imported."""
    return f"ldm.{box.replace('/', '.')}"


def _module_text(path: str) -> str:
    text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())
