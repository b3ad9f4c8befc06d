"""The part of YAML that params files need. Everything else in YAML is refused, with its line and a fix."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, Event
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from ldm.core.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_PLAIN = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "timestamp", "str", "seq", "map", "merge")}
_TEXTS = (f"{_TAG}str", f"{_TAG}merge")
"""Tags of a key: a string, or `<<`, which merges the keys of another mapping."""
_MAX_DEPTH = 20
_MAX_VALUES = 10_000
_MAX_DIGITS = 100


def load(text: str, path: Path) -> tuple[Node | None, Any]:
    """Parse the text of a file: returns its nodes, which know their lines, and its values.

    Raises:
        ConfigError: the text is not YAML 1.2, or holds something that no params file needs: keys that are not strings,
            tags, directives, control characters, values within themselves, or values that are too many or too deep.
    """
    if directive := re.search(r"^%(?!YAML 1\.2\s*$).*", text, re.MULTILINE):
        line = text.count("\n", 0, directive.start()) + 1
        raise ConfigError(f"{path}:{line}", directive[0][:60], "YAML 1.2 without directives", "delete the line")
    yaml: Any = YAML(typ="safe", pure=True)
    try:
        _check_depth(yaml.parse(text), path)
        root: Node | None = yaml.compose(text)
        if root is None:
            return None, None
        _Plain(path, yaml.constructor).count(root, ())
        return root, yaml.constructor.construct_document(root)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"character U+{error.character:04X}"
        raise ConfigError(f"{path}:{line}", found, "characters that can be printed", "delete the character") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{path}:{mark.line + 1 if mark else 1}", problem, "YAML 1.2", "correct the line") from None


def _check_depth(events: Iterable[Event], path: Path) -> None:
    """ConfigError if values are nested too deeply. Checked on events, because the parser of nodes is recursive and that
    of events is not."""
    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _MAX_DEPTH:
            fix = "close what is open, or write the file again by `ldm recipe`"
            found, where = f"values more than {_MAX_DEPTH} deep", f"{path}:{event.start_mark.line + 1}"
            raise ConfigError(where, found, "the few levels of params.yaml", fix)


class _Plain:
    """Refuses nodes that are valid YAML but make no sense in a params file."""

    def __init__(self, path: Path, constructor: Any) -> None:
        self._path, self._constructor = path, constructor
        self._counts: dict[int, int] = {}

    def count(self, node: Node, parents: tuple[Node, ...]) -> int:
        """Number of values in a node, counting those of an alias each time. ConfigError: one of them is not plain."""
        where = self._where(node)
        if any(parent is node for parent in parents):
            fix = "write the value out instead of *alias"
            raise ConfigError(where, "a value within itself", "values that end", fix)
        if len(parents) > _MAX_DEPTH:
            raise ConfigError(where, f"values more than {_MAX_DEPTH} deep", "fewer levels", "write fewer aliases")
        if id(node) in self._counts:
            return self._counts[id(node)]
        if node.tag not in _PLAIN:
            fix = "write the value without a tag, and a text in quotes"
            raise ConfigError(where, f"tag {node.tag}", "a number, text, list or mapping", fix)
        inner: list[Node] = []
        if isinstance(node, ScalarNode):
            self._check_scalar(node)
        elif isinstance(node, MappingNode):
            for key, _ in node.value:
                self._check_key(key)
            inner = [value for _, value in node.value]
        elif isinstance(node, SequenceNode):
            inner = node.value
        total = 1 + sum(self.count(value, (*parents, node)) for value in inner)
        if total > _MAX_VALUES:
            raise ConfigError(where, f"more than {_MAX_VALUES} values", "fewer", "write fewer values or aliases")
        self._counts[id(node)] = total
        return total

    def _where(self, node: Node) -> str:
        return f"{self._path}:{node.start_mark.line + 1}"

    def _check_key(self, key: Node) -> None:
        if isinstance(key, ScalarNode) and key.tag in _TEXTS:
            self._check_scalar(key)
            return
        shown = str(key.value)[:60] or "nothing" if isinstance(key, ScalarNode) else "a list or mapping"
        raise ConfigError(self._where(key), f"{shown} as a key", "a word as a key", "correct the key, or remove it")

    def _check_scalar(self, node: ScalarNode) -> None:
        where, text = self._where(node), str(node.value)
        odd = next((character for character in text if not character.isprintable()), None)
        if odd is not None:
            found = f"character U+{ord(odd):04X} in a value"
            raise ConfigError(where, found, "characters that can be printed, on one line", "delete the character")
        if node.tag in _TEXTS:
            return
        if len(text) > _MAX_DIGITS:
            found = f"a number of {len(text)} characters"
            raise ConfigError(where, found, f"at most {_MAX_DIGITS}", "write a smaller number")
        try:
            self._constructor.construct_object(node)
        except (ValueError, LookupError):  # such as the 31st of February, or a number without digits
            kind = node.tag.removeprefix(_TAG)
            fix = "correct the value, or put a text in quotes"
            found = f"{json.dumps(text[:60])}, which cannot be read"
            raise ConfigError(where, found, f"a value of kind {kind}", fix) from None
