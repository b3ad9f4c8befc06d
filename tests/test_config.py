"""Strict reading of one section, and the message for every kind of mistake."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from ldm.core import config
from ldm.core.errors import ConfigError
from ldm.tools.check import check
from tests.repository import params_of

ROOT = Path(__file__).parents[1]


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


class Named(config.Section):
    text: Annotated[str, Field(max_length=3)] | None


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
    """The findings that a reader gets after one edit of a good file, without the directory and their fixes."""
    assert old in GOOD
    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        config.read(Example, "example", path)
    return lines_of(caught.value, tmp_path)


def lines_of(error: ConfigError, tmp_path: Path) -> list[str]:
    """Findings without their fixes, which each must have."""
    lines = str(error).replace(f"{tmp_path}/", "").splitlines()
    assert all(line.startswith("fix: ") and len(line) > 10 for line in lines[1::2])
    return lines[::2]


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
        ("path: null", "path: 3", "params.yaml:6: example.path: found 3; expected a string or null"),
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
        (
            "count: 3",
            "count: 7",
            "params.yaml:2: example: count 7 does not go with this; expected values that go together",
        ),
    ],
)
def test_a_bad_value_is_named_with_line_and_legal_values(tmp_path: Path, old: str, new: str, finding: str) -> None:
    assert findings(tmp_path, old, new) == [finding]


@pytest.mark.parametrize(
    ("old", "new", "fixes"),
    [
        ("fast", "fats", ["write fast, if that is meant"]),
        ("count: 3", "count: 0", ["write an integer >= 1 and <= 9"]),
        ("    rate: 1e-4", "    raet: 1e-4", ["rename raet to rate", "rename it to rate, or remove it"]),
        ("path: null", "path: null\n  zzz: 3", ["remove it"]),
        ("  on: true\n", "", ["add on; recipes/default.yaml and paths.yaml are complete"]),
        ("count: 3", "count: 7", ["change the value, or one of the values that the line names"]),
    ],
)
def test_every_finding_says_what_to_do(tmp_path: Path, old: str, new: str, fixes: list[str]) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        config.read(Example, "example", path)
    assert str(caught.value).splitlines()[1::2] == [f"fix: {fix}" for fix in fixes]


def test_values_that_come_from_no_file_get_the_same_findings() -> None:
    good = {"rate": 0.5, "pair": (0, 1), "names": ["a"]}
    assert config.from_values(Inner, good, good).pair == (0, 1)
    wrong = {"rate": -1.0, "nmes": 3}
    with pytest.raises(ConfigError) as caught:
        config.from_values(Inner, good | wrong, wrong)
    assert str(caught.value).splitlines() == [
        "rate: found -1.0; expected a number > 0 and <= 1",
        "fix: write a number > 0 and <= 1",
        "nmes: unknown key; expected one of rate, pair, names; nearest: names",
        "fix: rename it to names, or remove it",
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "a \udcff",
            [
                'text: "a \udcff" has bytes that are not UTF-8; expected text in UTF-8',
                "fix: write it in UTF-8, as a terminal with a UTF-8 locale does",
            ],
        ),
        (
            "abcd",
            [
                'text: found "abcd"; expected a string with length <= 3 or null',
                "fix: write a string with length <= 3 or null",
            ],
        ),
    ],
)
def test_text_of_other_bytes_or_too_much_of_it_is_told_from_what_is_no_text(text: str, lines: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_values(Named, {"text": text}, {"text": text})
    assert str(caught.value).splitlines() == lines


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


ODD = {
    "form feed": ("# page \f break", ":18: character U+000C"),
    "bell": ("x: a\ab", ":18: character U+0007"),
    "nul": ("x: a\0b", ":18: character U+0000"),
    "delete": ("x: \x7f", ":18: character U+007F"),
    "escaped nul": ('x: "\\0"', ":18: character U+0000 in a value"),
    "half a character": ('x: "\\ud800"', ":18: character U+D800 in a value"),
    "line break in a value": ("x: |\n  a\n", ":18: character U+000A in a value"),
    "number": ("2024: x", ":18: 2024 as a key"),
    "fraction": ("1.5: x", ":18: 1.5 as a key"),
    "truth": ("true: x", ":18: true as a key"),
    "null": ("~: x", ":18: ~ as a key"),
    "nothing": (": x", ":18: nothing as a key"),
    "date": ("2024-01-01: x", ":18: 2024-01-01 as a key"),
    "list": ("? [a, b]\n: 3", ":18: a list or mapping as a key"),
    "mapping": ("{a: 1}: 3", ":18: a list or mapping as a key"),
    "number within": ("x:\n  y:\n    64: batch_size", ":20: 64 as a key"),
    "no such day": ("x: 2024-99-99", ':18: "2024-99-99", which cannot be read'),
    "no digit": ("x: 0b_", ':18: "0b_", which cannot be read'),
    "no fraction": ("x: ._", ':18: "._", which cannot be read'),
    "no truth": ("x: !!bool x", ':18: "x", which cannot be read'),
    "nothing of a kind": ("x: !!int", ':18: "", which cannot be read'),
    "tag": ("x: !!binary aaaa", ":18: tag tag:yaml.org,2002:binary"),
    "own tag": ("x: !mine a", ":18: tag !mine"),
    "thousands of digits": (f"x: {'9' * 5000}", ":18: a number of 5000 characters"),
    "thousands of hexadecimal digits": (f"x: 0x{'f' * 5000}", ":18: a number of 5002 characters"),
    "itself": ("x: &x [*x]", ":18: a value within itself"),
    "thousands of brackets": (f"x: {'[' * 3000}", ":18: values more than 20 deep"),
    "thousands of levels": ("\n".join(f"{'  ' * level}k:" for level in range(1500)), "values more than 20 deep"),
    "aliases of aliases": (
        "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "\n".join(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 12)),
        "more than 10000 values",
    ),
    "directive": ("%YAML 9.9\n---\na: 1", ":18: %YAML 9.9; expected YAML 1.2 without directives"),
    "merge of a number": ("x:\n  <<: 3", ":19: "),
    "value tag": ("x: =", ":18: tag "),
    "tab": ("x:\n\ty: 3", ":19: "),
    "unknown alias": ("x: *y", ":18: found undefined alias"),
}


@pytest.mark.parametrize(("line", "finding"), ODD.values(), ids=list(ODD))
def test_an_odd_file_is_refused_with_its_line(tmp_path: Path, line: str, finding: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"{GOOD}{line}\n")
    with pytest.raises(ConfigError) as caught:
        config.read_all((config.Document(path), {"example": Example}))
    first, fix = str(caught.value).splitlines()
    assert first.startswith(f"{path}:") and finding in first and "; expected " in first
    assert fix.startswith("fix: ")


def test_merge_keys_and_aliases_of_plain_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace("  inner:\n", "  inner: &inner\n") + "second:\n  <<: *inner\n  rate: 0.5\n")
    assert config.read(Inner, "second", path) == config.read(Example, "example", path).inner.model_copy(
        update={"rate": 0.5}
    )


def mutated(text: str, numbers: random.Random) -> str:
    """A params file after a few random edits, as a slip of hand or a bad merge would make them."""
    pieces = [*"\f\a\0\t\x7f\x85\ufeff\u2028\ud800{}[]:-#&*!|>'\"%@`?,=~ \n", "<<: *a", "&a ", "*a", "- ", "? ", ": "]
    pieces += ["!!int ", "!!set ", "!!bool ", "0x_", "._", "2024-13-01", "1e999", "-.inf", "9" * 400, "true", "null"]
    pieces += ["---\n", "...\n", "%YAML 1.1\n", "\\", "\r", "<<<<<<< HEAD\n", "[" * 30, "{" * 2000, "1: 2\n", "  "]
    for _ in range(numbers.randint(1, 4)):
        lines = text.split("\n")
        row, place = numbers.randrange(len(lines)), numbers.randrange(len(text) + 1)
        kind = numbers.randrange(6)
        if kind == 0:
            text = text[:place] + numbers.choice(pieces) + text[place:]
        elif kind == 1:
            text = text[:place] + text[place + numbers.randint(1, 30) :]
        elif kind == 2:
            lines[row] = numbers.choice(pieces) + lines[row].lstrip()
            text = "\n".join(lines)
        elif kind == 3:
            key, colon, _ = lines[row].partition(":")
            lines[row] = numbers.choice((f"{key}{colon} {numbers.choice(pieces)}", f"{lines[row]}{colon} x"))
            text = "\n".join(lines)
        elif kind == 4:
            lines.insert(row, lines[numbers.randrange(len(lines))])
            text = "\n".join(lines)
        else:
            lines[row] = numbers.choice(("  ", "    ", "")) + lines[row].strip()
            text = "\n".join(lines)
    return text


def test_no_random_edit_of_a_params_file_ends_in_a_traceback(tmp_path: Path) -> None:
    numbers, path = random.Random(0), tmp_path / "params.yaml"
    whole = params_of("tiny")
    sections = [
        whole[: whole.index("\ntrain_autoencoder:")],
        whole[whole.index("\ntrain_clip:") : whole.index("\nembed_")],
    ]
    num_refused = 0
    for number in range(300):
        path.write_bytes(mutated(sections[number % 2], numbers).encode("utf-8", "surrogatepass"))
        try:
            config.read_all((config.Document(path), check.SECTIONS))
        except ConfigError as error:
            lines = str(error).splitlines()
            assert all(line.startswith(str(path)) and "; expected " in line for line in lines[::2]), lines
            assert all(line.startswith("fix: ") for line in lines[1::2]), lines
            num_refused += 1
    assert num_refused == 300, "sections are missing"


def test_paths_are_read_from_their_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("paths.yaml").write_text(GOOD.replace("example:", "paths:").replace("count: 3", "count: 0"))
    Path("params.yaml").write_text(GOOD)
    assert config.read(Example, "example").count == 3
    with pytest.raises(ConfigError, match=r"^paths.yaml:3: paths.count: found 0"):
        config.read(Example, "paths")


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*\nfix: run from the repository root"):
        config.read(Example, "example", tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").touch()
    with pytest.raises(ConfigError, match=r"fix: `git checkout .*params.yaml` brings it back"):
        config.read(Example, "example", tmp_path / "params.yaml")


def test_all_sections_report_at_once_and_strangers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace("count: 3", "count: 0").replace("other:", "exmaple:"))
    with pytest.raises(ConfigError) as caught:
        config.read_all((config.Document(path), {"example": Example, "second": Inner}))
    lines = lines_of(caught.value, tmp_path)
    assert lines[0].startswith(
        "params.yaml:1: exmaple: unknown section; expected one of example, second; nearest: example"
    )
    assert [line.split(":")[2].strip() for line in lines[1:]] == ["example.count", "second"]


def test_reading_params_needs_no_torch() -> None:
    code = "import sys, ldm.tools.check.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
