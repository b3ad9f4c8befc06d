"""What of YAML is read; odd files by kind, with their messages, are in test_config."""

from pathlib import Path

import pytest

from ldm.core import plain_yaml
from ldm.core.errors import ConfigError


def test_values_come_with_the_lines_of_their_keys() -> None:
    root, values = plain_yaml.load("# first\na: 1e-4\nb: [x, null]\n", Path("p.yaml"))
    assert values == {"a": 1e-4, "b": ["x", None]}
    assert root is not None and [key.start_mark.line for key, _ in root.value] == [1, 2]


@pytest.mark.parametrize(
    ("text", "line"), [("a: 1\n3: x\n", 2), ("a: !!python/object:x {}\n", 1), ("a: &x [*x]\n", 1), ("a: b\x0c\n", 1)]
)
def test_what_no_params_file_needs_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=f"p.yaml:{line}: .*\nfix: "):
        plain_yaml.load(text, Path("p.yaml"))
