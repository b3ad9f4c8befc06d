"""Params models as controls of a page: a new field, kind or limit of a model is a new one on the page."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types

from ldm.core.config import Section
from ldm.tools.cli.options import docstrings, sections

Form = Literal["number", "slider", "switch", "choice", "text"]
_SIDES = {"size_px": ("height", "width"), "guidance_interval": ("from", "to")}
"""Names of the values of a field that holds two."""
_END_OF_SENTENCE = re.compile(r"(?<!et al)\. ")
_NO_CHOICES: Mapping[str, Sequence[str]] = {}


@dataclass(frozen=True)
class Control:
    """One value that a visitor sets."""

    path: tuple[str, ...]
    """Where its value goes: a field; a field and the place in it; a field, a kind and a field of that kind."""
    form: Form
    label: str
    about: str
    """What it means, in a sentence."""
    value: Any
    """What it is unless it is changed."""
    low: float | None = None
    high: float | None = None
    """Limits; the params model says whether they are legal themselves."""
    step: float = 1
    is_whole: bool = False
    is_number: bool = False
    is_optional: bool = False
    """Whether it may be left empty. Such a number is written as a text."""
    choices: tuple[str, ...] = ()
    of_kind: str | None = None
    """The kind that it belongs to, for a field of one of several kinds."""
    is_shown: bool = True
    """Whether it is seen at first: its kind is chosen, if it has one."""

    @property
    def name(self) -> str:
        """Its path as one word."""
        return "_".join(self.path)


def controls(
    model: type[Section],
    values: Mapping[str, Any],
    skipped: Collection[str] = (),
    folders: Mapping[str, Sequence[str]] = _NO_CHOICES,
) -> list[Control]:
    """The controls of all fields of a model, in their order.

    values: those that are set at first. folders: names of fields of kinds that hold a folder -> the folders that may
    be named. A kind that needs a folder is left out if there is none: visitors do not name paths of the server.
    """
    texts = docstrings(model)
    found: list[Control] = []
    for name, field in model.model_fields.items():
        if name not in skipped:
            annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            found += _of_field(name, annotation, values[name], _sentence(texts.get(name, "")), folders)
    return found


def settings(controls: Sequence[Control], values: Mapping[str, Any]) -> dict[str, Any]:
    """What a params model takes, of the values of controls by name. Values of kinds that are not chosen are left
    out."""
    found: dict[str, Any] = {}
    for control in controls:
        value = _read(control, values[control.name])
        match control.path:
            case (field,):
                found[field] = value
            case (field, "kind"):
                found[field] = {"kind": value}
            case (field, _):
                found.setdefault(field, []).append(value)
            case (field, kind, key):
                if found[field]["kind"] == kind:
                    found[field][key] = value
            case _:
                raise AssertionError(control.path)
    empty = [name for name, value in found.items() if isinstance(value, list) and all(part is None for part in value)]
    return {**found, **dict.fromkeys(empty)}


def shown(controls: Sequence[Control], field: str, kind: str) -> dict[str, bool]:
    """Name -> whether a control of a kind of this field is to be seen, now that this kind is chosen."""
    return {c.name: c.of_kind == kind for c in controls if c.path[0] == field and c.of_kind is not None}


def _read(control: Control, value: Any) -> Any:
    """A value as a browser sends it: numbers are floats, and a value that may be left empty is a text."""
    if control.is_optional and isinstance(value, str):
        value = _number(value) if control.is_number else value or None
    return int(value) if control.is_whole and isinstance(value, float) and value.is_integer() else value


def _number(text: str) -> float | str | None:
    """The number of a text; None if it is empty, and the text itself if it is no number, which the model refuses."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def _of_field(
    name: str, annotation: Any, value: Any, about: str, folders: Mapping[str, Sequence[str]]
) -> Iterator[Control]:
    members = sections(annotation)
    parts = _parts(annotation)
    if members:
        yield from _of_kinds(name, members, value, about, folders)
    elif parts:
        values = value or (None,) * len(parts)
        for side, part, one in zip(_SIDES[name], parts, values, strict=True):
            label = f"{title(name)}: {side}"
            yield _control((name, side), part, one, label, about, is_optional=_is_optional(annotation))
    else:
        yield _control((name,), annotation, value, title(name), about, is_optional=_is_optional(annotation))


def _of_kinds(
    name: str, members: Sequence[type[Section]], value: Any, about: str, folders: Mapping[str, Sequence[str]]
) -> Iterator[Control]:
    able = {_kind(model): model for model in members if all(folders.get(key) for key in folders.keys() & _keys(model))}
    yield Control((name, "kind"), "choice", title(name), about, value["kind"], choices=tuple(able))
    for kind, model in able.items():
        texts = docstrings(model)
        for key in _keys(model):
            annotation, own = model.model_fields[key], value["kind"] == kind
            typed = Annotated[annotation.annotation, *annotation.metadata]
            label, text = f"{title(name)}: {title(key).lower()}", _sentence(texts.get(key, ""))
            if key in folders:
                first = value[key] if own else folders[key][0]
                one = Control((name, kind, key), "choice", label, text, first, choices=tuple(folders[key]))
            else:
                one = _control((name, kind, key), typed, value[key] if own else None, label, text)
            yield replace(one, of_kind=kind, is_shown=own)


def _control(
    path: tuple[str, ...],
    annotation: Any,
    value: Any,
    label: str,
    about: str,
    is_optional: bool = False,
) -> Control:
    limits = list(_limits(annotation))
    base = _base(annotation)
    if get_origin(base) is Literal:
        return Control(path, "choice", label, about, value, choices=get_args(base))
    if base is bool:
        return Control(path, "switch", label, about, value)
    if base is str:
        return Control(path, "text", label, about, value, is_optional=is_optional)
    assert base in (int, float), f"no control is known for {annotation}"
    is_whole = base is int
    low, high = _low(limits, is_whole), _high(limits, is_whole)
    is_narrow = not is_whole and not is_optional and low is not None and high is not None and high - low <= 1
    if value is None and not is_optional:
        value = low if low is not None else 0
    return Control(
        path,
        "text" if is_optional else "slider" if is_narrow else "number",
        label,
        about,
        value,
        low,
        high,
        1 if is_whole else 0.05 if is_narrow else 0.1,
        is_whole,
        True,
        is_optional,
    )


def _limits(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        yield from _limits(inner)
        for entry in metadata:
            yield from getattr(entry, "metadata", [entry])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _limits(part)


def _low(limits: Sequence[Any], is_whole: bool) -> float | None:
    found: list[Any] = [limit.ge for limit in limits if isinstance(limit, annotated_types.Ge)]
    found += [_number_of(limit.gt) + is_whole for limit in limits if isinstance(limit, annotated_types.Gt)]
    return max(found, default=None)


def _high(limits: Sequence[Any], is_whole: bool) -> float | None:
    found: list[Any] = [limit.le for limit in limits if isinstance(limit, annotated_types.Le)]
    found += [_number_of(limit.lt) - is_whole for limit in limits if isinstance(limit, annotated_types.Lt)]
    return min(found, default=None)


def _number_of(limit: Any) -> float:
    return limit


def _base(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _base(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        (inner,) = [part for part in get_args(annotation) if part is not type(None)]
        return _base(inner)
    return annotation


def _parts(annotation: Any) -> tuple[Any, ...]:
    """Types of the values of a tuple; none for another type."""
    if sections(annotation):
        return ()
    base = _base(annotation)
    return get_args(base) if get_origin(base) is tuple else ()


def _is_optional(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_optional(get_args(annotation)[0])
    return get_origin(annotation) in (Union, UnionType) and type(None) in get_args(annotation)


def _kind(model: type[Section]) -> str:
    return get_args(model.model_fields["kind"].annotation)[0]


def _keys(model: type[Section]) -> list[str]:
    return [key for key in model.model_fields if key != "kind"]


def title(name: str) -> str:
    """The words of a key, such as "Guidance scale", "Steps" and "Margin in pixels"."""
    return name.removeprefix("num_").replace("_px", " in pixels").replace("_", " ").capitalize()


def _sentence(text: str) -> str:
    """The first sentence of a docstring, without its marks."""
    first = _END_OF_SENTENCE.split(text)[0].rstrip(".").replace("`", "")
    return f"{first}." if first else ""
