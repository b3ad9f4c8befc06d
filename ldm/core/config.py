"""Read params files into frozen, validated sections.

Errors name file, line, key, value, what is legal, and the nearest legal name.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from ldm.core import plain_yaml, system
from ldm.core.errors import ConfigError

PARAMS = Path("params.yaml")
PATHS = Path("paths.yaml")
"""The file of the section `paths`, which dvc.yaml also reads; every other section is in `PARAMS`."""
_KINDS = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "string": "a string",
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}
_LIMITS = {
    "exclusiveMinimum": ">",
    "minimum": ">=",
    "exclusiveMaximum": "<",
    "maximum": "<=",
    "multipleOf": "a multiple of",
    "minItems": "with length >=",
    "maxItems": "with length <=",
    "minLength": "with length >=",
    "maxLength": "with length <=",
    "pattern": "matching",
}
_NAME_ITSELF = "[key]"
"""What pydantic calls a name of a mapping, where that is wrong and not its value."""
_COMPLETE = f"recipes/default.yaml and {PATHS} are complete"
Loc = tuple[int | str, ...]
Json = dict[str, Any]


class Section(BaseModel):
    """Base of every params model: unknown keys, changes and NaN are refused; subclasses must not have defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


BESIDE: dict[str, JsonValue] = {"beside": True}
"""`json_schema_extra` of a field that does not affect the computation, such as how often to save or how much to show. A
stopped run can continue after such a change."""


def is_beside(field: FieldInfo) -> bool:
    """Whether a field is marked `BESIDE`."""
    return isinstance(field.json_schema_extra, dict) and "beside" in field.json_schema_extra


S = TypeVar("S", bound=Section)


class Document:
    """A params file: its values (YAML 1.2, as DVC reads it) and the line of every key.

    Raises:
        ConfigError: the file is missing, is not YAML, repeats a key, is not a mapping of sections, or holds something
            that no params file needs: keys that are not strings, tags, control characters, values within themselves.
    """

    def __init__(self, path: Path = PARAMS) -> None:
        self.path = path
        try:
            if not path.is_file():
                fix = "run from the repository root, or name a file"
                if path.with_name("dvc.yaml").is_file():
                    fix = f"`git checkout {path}` brings it back"
                raise ConfigError(str(path), "no such file", "a params file", fix)
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(str(path), f"byte {error.start} is not UTF-8", "text", "save it as UTF-8") from None
        except OSError as error:
            raise system.explain(error, str(path), ConfigError) from None
        self._node, data = plain_yaml.load(text, path)
        if not isinstance(data, dict):
            fix = "write sections as recipes/default.yaml has them"
            raise ConfigError(f"{path}:1", "no sections", "a mapping of sections", fix)
        self.data: dict[str, Any] = data

    def where(self, loc: Loc) -> str:
        """`file:line: dotted.key`, with the line of `line_of`."""
        return f"{self.path}:{self.line_of(loc)}: {'.'.join(map(str, loc))}"

    def line_of(self, loc: Loc) -> int:
        """The line, counted from 1, of the deepest part of `loc` that is in the file."""
        node, line = self._node, 1
        for part in loc:
            found = _child(node, part)
            if found is None:
                break
            node, line = found
        return line

    def validate(self, section: type[S], name: str) -> tuple[S | None, list[ConfigError]]:
        """The section `name` as a validated `section`; or None, and everything that is wrong with it."""
        if name not in self.data:
            near = _nearest(name, list(self.data))
            fix = f"rename {near} to {name}" if near else f"add it; {_COMPLETE}"
            expected = f"{', '.join(section.model_fields)}{_hint(near)}"
            return None, [ConfigError(f"{self.path}:1: {name}", "section missing", expected, fix)]
        try:
            # JSON mode is strict about numbers and strings, but accepts a list for a tuple.
            text = json.dumps(self.data[name], default=str)
            return section.model_validate_json(text, strict=True), []
        except ValidationError as error:
            return None, _explained(section, error, self.data[name], lambda loc: self.where((name, *loc)))

    def read(self, section: type[S], name: str) -> S:
        """The section `name`, validated. ConfigError: lists everything that is wrong with it."""
        value, errors = self.validate(section, name)
        if value is None:
            raise ConfigError.many(errors)
        return value

    def unknown_sections(self, known: Sequence[str]) -> list[ConfigError]:
        """One error per top-level key that is not in `known`."""
        return [self._unknown(name, known) for name in self.data if name not in known]

    def _unknown(self, name: str, known: Sequence[str]) -> ConfigError:
        where, near = self.where((name,)), _nearest(name, known)
        if name == "paths":
            fix = f"write what differs into {PATHS}, and delete the section here"
            return ConfigError(where, "section in the wrong file", f"it in {PATHS}", fix)
        expected = f"one of {', '.join(known)}{_hint(near)}"
        return ConfigError(where, "unknown section", expected, _rename(near))


def read(section: type[S], name: str, path: Path | None = None) -> S:
    """Read one top-level section. path: by default `PATHS` for the section `paths`, and `PARAMS` for every other one.

    Raises:
        ConfigError: lists everything that is wrong with this section, each with its fix.
    """
    return Document(path or (PATHS if name == "paths" else PARAMS)).read(section, name)


def read_all(*files: tuple[Document, Mapping[str, type[Section]]]) -> dict[str, Section]:
    """Read all sections of one or more files. Each file must have exactly the sections that are given with it.

    Raises:
        ConfigError: lists everything that is wrong with all files, each with its fix.
    """
    errors: list[ConfigError] = []
    values: dict[str, Section] = {}
    for document, sections in files:
        errors += document.unknown_sections(list(sections))
        for name, section in sections.items():
            value, findings = document.validate(section, name)
            errors += findings
            if value is not None:
                values[name] = value
    if errors:
        raise ConfigError.many(errors)
    return values


def from_values(section: type[S], values: Mapping[str, Any], given: Mapping[str, Any]) -> S:
    """Make a section from values that are not from a file.

    given: those of the values that the caller set, such as arguments of a call; used to explain errors.

    Raises:
        ConfigError: lists everything that is wrong, each with its key and fix.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError.many(
            _explained(section, error, given, lambda loc: ".".join(map(str, loc)) or "settings")
        ) from None


def kinds(section: type[Section], name: str) -> dict[str, list[str]]:
    """Dotted key -> possible kinds, for every value in a section that has a `kind`."""
    found: dict[str, list[str]] = {}
    for key, kind in Schema(section).kinds(name):
        found[key] = [*found.get(key, []), *([kind] if kind not in found.get(key, []) else [])]
    return found


def _explained(
    section: type[Section], error: ValidationError, values: Any, where: Callable[[Loc], str]
) -> list[ConfigError]:
    """One error per finding of pydantic. where: names a location within the section."""
    schema = Schema(section)
    found = [_explain(schema, details, values, where) for details in error.errors()]
    return list({str(error): error for error in found}.values())


def _explain(schema: "Schema", details: ErrorDetails, values: Any, where: Callable[[Loc], str]) -> ConfigError:
    loc, owner, field = schema.locate(details["loc"])
    place, key = where(loc), str(loc[-1]) if loc else ""
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        near = _nearest(key, [other for other in owner if other not in _keys(values, loc[:-1])])
        return ConfigError(place, "unknown key", f"one of {', '.join(owner)}{_hint(near)}", _rename(near))
    if kind == "missing":
        near = _nearest(key, [other for other in _keys(values, loc[:-1]) if other not in owner])
        fix = f"rename {near} to {key}" if near else f"add {key}; {_COMPLETE}"
        return ConfigError(place, "missing", f"{schema.legal(field)}{_hint(near)}", fix)
    if kind == "value_error":  # from a validator of a section, which may word it "...; expected ..."
        found, _, expected = details["msg"].removeprefix("Value error, ").partition("; expected ")
        fix = "change the value, or one of the values that the line names"
        return ConfigError(place, found, expected or "values that go together", fix)
    if kind.startswith("union_tag"):  # an unknown or missing `kind`: name the discriminator itself
        tag_key = field["discriminator"]["propertyName"]
        place, value = where((*loc, tag_key)), value.get(tag_key) if isinstance(value, dict) else value
    if kind == "string_unicode":
        fix = "write it in UTF-8, as a terminal with a UTF-8 locale does"
        return ConfigError(place, f"{_show(value)} has bytes that are not UTF-8", "text in UTF-8", fix)
    legal, near = schema.legal(field), _nearest(str(value), schema.choices(field))
    fix = f"write {near}, if that is meant" if near else f"write {legal}"
    return ConfigError(place, f"found {_show(value)}", f"{legal}{_hint(near)}", fix)


def _keys(values: Any, loc: Loc) -> list[str]:
    for part in loc:
        values = values[part]
    return list(values) if isinstance(values, Mapping) else []


def _child(node: Node | None, part: int | str) -> tuple[Node, int] | None:
    """The value at `part` of a YAML node, and its line, counted from 1."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == part:
                return value, key.start_mark.line + 1
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        return value, value.start_mark.line + 1
    return None


class Schema:
    """The JSON schema of a section, which describes the legal values of every key."""

    def __init__(self, section: type[Section]) -> None:
        self._root: Json = section.model_json_schema()

    def field(self, name: str) -> Json:
        """The schema of a field of the section."""
        return self._root["properties"][name]

    def locate(self, loc: Loc) -> tuple[Loc, list[str], Json]:
        """Resolve pydantic's error location, which also names members of unions.

        Returns the location in the file, the legal keys of the mapping that its last part belongs to, and the schema of
        that part (empty for an unknown key).
        """
        path: list[int | str] = []
        owner: list[str] = []
        pattern = ""
        here: Json = self._root
        for part in loc:
            options = self._options(here)
            mappings = [option for option in options if "properties" in option]
            if isinstance(part, int):
                path.append(part)
                here = next((_item(option, part) for option in options if option.get("type") == "array"), {})
            elif part in here.get("discriminator", {}).get("mapping", {}):
                here = {"$ref": here["discriminator"]["mapping"][part]}
            elif part == _NAME_ITSELF and pattern:
                here = {"type": "string", "pattern": pattern}
            elif mappings:
                path.append(part)
                mapping = next((option for option in mappings if part in option["properties"]), mappings[0])
                owner, here = list(mapping["properties"]), mapping["properties"].get(part, {})
            elif named := [option["patternProperties"] for option in options if "patternProperties" in option]:
                path.append(part)
                owner, pattern = [], next(iter(named[0]))
                here = named[0][pattern]
        return tuple(path), owner, here

    def choices(self, field: Json) -> list[str]:
        """The legal values of a field that takes one of a few values."""
        if "discriminator" in field:
            return list(field["discriminator"]["mapping"])
        enums = [option.get("enum", [option.get("const")]) for option in self._options(field) if _is_choice(option)]
        return [choice if isinstance(choice, str) else json.dumps(choice) for enum in enums for choice in enum]

    def legal(self, field: Json) -> str:
        """The values that a field accepts, in words."""
        choices = self.choices(field)
        words = [f"one of {', '.join(choices)}"] if choices else []
        if "discriminator" not in field:
            words += [self._legal(option) for option in self._options(field) if not _is_choice(option)]
        return " or ".join(words)

    def kinds(self, key: str, field: Json | None = None) -> Iterator[tuple[str, str]]:
        """(dotted key, kind) for every value at or below `key` that has a `kind`, and for each of its kinds."""
        for option in self._options(self._root if field is None else field):
            properties: dict[str, Json] = option.get("properties", {})
            if "const" in properties.get("kind", {}):
                yield key, properties["kind"]["const"]
            for part, inner in properties.items():
                yield from self.kinds(f"{key}.{part}", inner)
            named: dict[str, Json] = option.get("patternProperties", {})
            for inner in [*named.values(), *([option["items"]] if "items" in option else [])]:
                yield from self.kinds(key, inner)

    def _legal(self, option: Json) -> str:
        words = [_KINDS.get(option.get("type", ""), "a value")]
        if "properties" in option:
            words.append(f"with keys {', '.join(option['properties'])}")
        items = option.get("items") or next(iter(option.get("prefixItems", [])), None)
        if items:
            words.append(f"of {self.legal(items)}")
        limits = [f"{sign} {option[name]}" for name, sign in _LIMITS.items() if name in option]
        return " ".join([*words, " and ".join(limits)]).strip()

    def _options(self, field: Json) -> list[Json]:
        while "$ref" in field:
            field = self._root["$defs"][field["$ref"].rsplit("/", 1)[1]]
        members: list[Json] = [*field.get("anyOf", []), *field.get("oneOf", [])]
        return [option for member in members for option in self._options(member)] if members else [field]


def _is_choice(option: Json) -> bool:
    return "enum" in option or "const" in option


def _item(array: Json, index: int) -> Json:
    fixed: list[Json] = array.get("prefixItems", [])
    return fixed[index] if index < len(fixed) else array.get("items", {})


def _nearest(word: str, names: Sequence[str]) -> str | None:
    return next(iter(get_close_matches(word, names, n=1)), None)


def _hint(near: str | None) -> str:
    return f"; nearest: {near}" if near else ""


def _rename(near: str | None) -> str:
    return f"rename it to {near}, or remove it" if near else "remove it"


def _show(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
