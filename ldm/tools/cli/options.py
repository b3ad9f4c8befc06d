"""Options of commands, and those that follow from the fields of a params model: a new field is a new option."""

import argparse
import ast
import inspect
import json
import re
from collections.abc import Callable, Collection
from functools import cache
from textwrap import dedent
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ldm.core.config import Section

Commands = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]
"""What `add_subparsers` returns."""
_EXAMPLES = "examples:"
_BETWEEN_PAIRS = re.compile(r",(?![^\[]*\])")


class _Layout(argparse.HelpFormatter):
    """Wraps descriptions, and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


class Command(argparse.ArgumentParser):
    """The parser of one command. `more` makes the last part of its help, and is called only when help is printed."""

    more: Callable[[], str] | None = None

    def __init__(self, **arguments: Any) -> None:
        arguments.setdefault("formatter_class", _Layout)
        super().__init__(**arguments)

    def format_help(self) -> str:
        """Help, and `more`."""
        return super().format_help() + (self.more() if self.more else "")


def examples(*commands: str) -> str:
    """The end of a help: commands that can be typed as they stand, and what follows `#` in them as a remark."""
    return "\n".join([_EXAMPLES, *(f"  {command}" for command in commands)])


def whole(low: int, high: int) -> Callable[[str], int]:
    """Make a parser of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from {low} to {high}")
        return number

    return read


def add_fields(parser: argparse.ArgumentParser, model: type[Section], skipped: Collection[str] = ()) -> None:
    """An option per field of the model, such as `--num-steps` for num_steps, whose docstring is the help."""
    texts = docstrings(model)
    for name, field in model.model_fields.items():
        if name not in skipped:
            annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            form = _form(annotation)
            text = " ".join([texts.get(name, ""), *([f"One of: {', '.join(forms(annotation))}"] * ("kind" in form))])
            options = {key: value for key, value in form.items() if key != "kind"}
            parser.add_argument(
                flag(name), dest=name, default=argparse.SUPPRESS, help=text.strip().replace("%", "%%"), **options
            )


def given(options: argparse.Namespace, model: type[Section]) -> dict[str, Any]:
    """The fields of the model that were given as options."""
    return {name: getattr(options, name) for name in model.model_fields if hasattr(options, name)}


def forms(annotation: Any) -> list[str]:
    """How each params class of a union is written in one word, such as ddim,eta=VALUE."""
    return [",".join([*_kind(model), *(f"{key}=VALUE" for key in _keys(model))]) for model in sections(annotation)]


def flag(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def _form(annotation: Any) -> dict[str, Any]:
    """Arguments of `add_argument` for values of a type. `kind` is set for a params class, or a union of them."""
    if sections(annotation):
        return {"type": _keyed(annotation), "metavar": "NAME[,KEY=VALUE]", "kind": True}
    if get_origin(annotation) is Annotated:
        return _form(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        (inner,) = [part for part in get_args(annotation) if part is not type(None)]
        return _form(inner)
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        return _form(parts[0]) | {"nargs": len(parts)}
    if get_origin(annotation) is list:
        return _form(get_args(annotation)[0]) | {"nargs": "+"}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    assert annotation in (int, float, str), f"no option is known for {annotation}"
    return {"type": annotation, "metavar": {int: "N", float: "X", str: "TEXT"}[annotation]}


def sections(annotation: Any) -> list[type[Section]]:
    """The params classes that a type names: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
        return [section for part in parts for section in sections(part)]
    return []


def _kind(model: type[Section]) -> list[str]:
    """Its kind, as a list of one; of none if it has none."""
    return [get_args(model.model_fields["kind"].annotation)[0]] if "kind" in model.model_fields else []


def _keys(model: type[Section]) -> list[str]:
    return [key for key in model.model_fields if key != "kind"]


def _keyed(annotation: Any) -> Callable[[str], dict[str, Any]]:
    """Make a parser of values such as dpm_solver_pp_2m or ddim,eta=0.5."""
    models = sections(annotation)
    has_kinds = any(_kind(model) for model in models)
    texts = {key for model in models for key, field in model.model_fields.items() if field.annotation is str}

    def read(text: str) -> dict[str, Any]:
        first, *others = _BETWEEN_PAIRS.split(text)
        pairs = [pair.partition("=") for pair in (others if has_kinds else [first, *others])]
        try:
            values = {key: value if key in texts else json.loads(value) for key, _, value in pairs}
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"found {text!r}; expected one of {', '.join(forms(annotation))}"
            ) from None
        return {"kind": first, **values} if has_kinds else values

    return read


@cache
def docstrings(model: type[Section]) -> dict[str, str]:
    """The docstring under each field."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not (issubclass(owner, Section) and owner is not Section):
            continue
        (tree,) = ast.parse(dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found
