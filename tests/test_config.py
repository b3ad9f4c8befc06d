"""Strict reading of one section, and the message for every kind of mistake."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from ldm import config
from ldm.errors import ConfigError


class Circle(config.Section):
    kind: Literal["circle"]
    radius_px: int = Field(gt=0)


class Square(config.Section):
    kind: Literal["square"]
    side_px: int = Field(gt=0)


class Inner(config.Section):
    rate: float = Field(gt=0, le=1)
    pair: tuple[float, float]
    names: list[Literal["a", "b"]] = Field(min_length=1)


class Example(config.Section):
    count: int = Field(ge=1, le=9)
    on: bool
    mode: Literal["fast", "exact"]
    path: str | None
    width: int | list[int]
    inner: Inner
    shape: Annotated[Circle | Square, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.count == 7:
            raise ValueError("count 7 does not go with this")
        return self


GOOD = """\
other: {}
example:
  count: 3
  on: true
  mode: fast
  path: null
  width: 4
  inner:
    rate: 1e-4
    pair:
      - 0
      - 1.5
    names:
      - a
  shape:
    kind: circle
    radius_px: 5
"""


def findings(tmp_path: Path, old: str, new: str) -> list[str]:
    """The lines that a reader gets after one edit of a good file, the directory cut off."""
    assert old in GOOD
    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        config.read(Example, "example", path)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def test_a_good_section_is_read_as_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD)
    example = config.read(Example, "example", path)
    assert example.inner.rate == 1e-4
    assert example.inner.pair == (0.0, 1.5)
    assert example.shape == Circle(kind="circle", radius_px=5)
    with pytest.raises(ValidationError):
        example.count = 4  # pyright: ignore


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("count: 3", "count: 0", "params.yaml:3: example.count: found 0; expected an integer >= 1 and <= 9"),
        ("count: 3", 'count: "3"', 'params.yaml:3: example.count: found "3"; expected an integer >= 1 and <= 9'),
        ("count: 3", "count: true", "params.yaml:3: example.count: found true; expected an integer >= 1 and <= 9"),
        ("count: 3", "count: 3.5", "params.yaml:3: example.count: found 3.5; expected an integer >= 1 and <= 9"),
        ("on: true", "on: 1", "params.yaml:4: example.on: found 1; expected true or false"),
        ("on: true", "on: no", 'params.yaml:4: example.on: found "no"; expected true or false'),
        ("fast", "fats", 'params.yaml:5: example.mode: found "fats"; expected one of fast, exact; nearest: fast'),
        ("path: null", "path: 3", "params.yaml:6: example.path: found 3; expected a text or null"),
        (
            "width: 4",
            "width: x",
            'params.yaml:7: example.width: found "x"; expected an integer or a list of an integer',
        ),
        ("rate: 1e-4", "rate: .nan", "params.yaml:9: example.inner.rate: found NaN; expected a number > 0 and <= 1"),
        ("- 1.5", "- x", 'params.yaml:12: example.inner.pair.1: found "x"; expected a number'),
        ("- a", "- c", 'params.yaml:14: example.inner.names.0: found "c"; expected one of a, b'),
        (
            "kind: circle",
            "kind: cirle",
            'params.yaml:16: example.shape.kind: found "cirle"; expected one of circle, square; nearest: circle',
        ),
        ("radius_px: 5", "radius_px: 0", "params.yaml:17: example.shape.radius_px: found 0; expected an integer > 0"),
        ("count: 3", "count: 7", "params.yaml:2: example: count 7 does not go with this"),
    ],
)
def test_a_bad_value_is_named_with_line_and_legal_values(tmp_path: Path, old: str, new: str, finding: str) -> None:
    assert list(dict.fromkeys(findings(tmp_path, old, new))) == [finding]


def test_a_misspelt_key_is_missing_and_unknown_and_both_lines_name_the_other(tmp_path: Path) -> None:
    assert findings(tmp_path, "    rate: 1e-4", "    raet: 1e-4") == [
        "params.yaml:8: example.inner.rate: missing; expected a number > 0 and <= 1; nearest: raet",
        "params.yaml:9: example.inner.raet: unknown key; expected one of rate, pair, names; nearest: rate",
    ]


def test_a_key_of_another_union_member_is_unknown(tmp_path: Path) -> None:
    lines = findings(tmp_path, "radius_px: 5", "radius_px: 5\n    side_px: 3")
    assert lines == ["params.yaml:18: example.shape.side_px: unknown key; expected one of kind, radius_px"]


def test_a_missing_section_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("exampel: {}\n")
    with pytest.raises(ConfigError, match=r"params.yaml:1: example: section missing; .*; nearest: exampel"):
        config.read(Example, "example", tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("a: 1\na: 2\n", ":2: found duplicate key"),
        ("a: [1\n", ":2: "),
        ("- a\n", ":1: no sections; expected a mapping of sections"),
        ("", ":1: no sections"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, text: str, finding: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.Document(tmp_path / "params.yaml")
    first, *rest = str(caught.value).splitlines()
    assert finding in first
    assert [line[:5] for line in rest] == ["fix: "]


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config.read(Example, "example", tmp_path / "params.yaml")


def test_all_sections_report_at_once_and_strangers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace("count: 3", "count: 0").replace("other:", "exmaple:"))
    with pytest.raises(ConfigError) as caught:
        config.read_all({"example": Example, "second": Inner}, path)
    lines = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    assert lines[0].startswith(
        "params.yaml:1: exmaple: unknown section; expected one of example, second; nearest: example"
    )
    assert [line.split(":")[2].strip() for line in lines[1:]] == ["example.count", "second"]


def test_reading_params_needs_no_torch() -> None:
    code = "import sys, ldm.check; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
