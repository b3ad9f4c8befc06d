"""What a user reads and the process ends with."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ldm.compute import attention
from ldm.core import artifact, config, errors
from ldm.core.errors import (
    ConfigError,
    IntegrityError,
    Interrupted,
    MachineError,
    NumericsError,
    RejectedError,
    Stopped,
    UserError,
)
from ldm.core.shards import Shards
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams
from ldm.tools.check import check
from tests import kinds
from tests.repository import params_of

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "ldm").rglob("*.py")), *sorted((ROOT / "stages").glob("*.py"))]
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, UserError)}
FIX = 3
"""Where the fix stands among the arguments of an error."""


def test_a_user_error_says_where_what_is_expected_and_what_to_do() -> None:
    error = IntegrityError("data/a.tar", "sha256 12", "sha256 34", "run dvc pull")
    assert str(error) == "data/a.tar: sha256 12; expected sha256 34\nfix: run dvc pull"


@pytest.mark.parametrize("fix", ["", "  ", "\n"])
def test_an_error_without_a_fix_cannot_be_made(fix: str) -> None:
    with pytest.raises(AssertionError, match="an error without a fix: a: b"):
        ConfigError("a", "b", "c", fix)
    with pytest.raises(TypeError, match="fix"):
        ConfigError("a", "b", "c")  # pyright: ignore
    with pytest.raises(AssertionError, match="without a finding"):
        ConfigError.many([])


def test_a_finding_and_its_fix_are_one_line_each() -> None:
    error = MachineError("a", "two\nlines", "one", "run\nthis")
    assert str(error) == "a: two lines; expected one\nfix: run this"


def test_many_findings_are_a_line_and_a_fix_each() -> None:
    error = ConfigError.many([ConfigError("a:1", "x", "y", "write y"), IntegrityError("b", "no", "yes", "make it")])
    assert isinstance(error, ConfigError)
    assert str(error) == "a:1: x; expected y\nfix: write y\nb: no; expected yes\nfix: make it"


def test_exit_codes() -> None:
    kinds = (ConfigError, RejectedError, IntegrityError, MachineError, NumericsError, Stopped, Interrupted)
    assert [kind.exit_code for kind in kinds] == [2, 3, 4, 5, 6, 75, 130]
    assert all(issubclass(kind, UserError) for kind in kinds)


def fixes(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every fix that is written in a module, formatted values as `{}`; a name is looked up."""
    assigned = [node for node in ast.walk(module) if isinstance(node, ast.Assign)]
    for call in ast.walk(module):
        if not (isinstance(call, ast.Call) and ast.unparse(call.func).removeprefix("errors.") in KINDS):
            continue
        if any(isinstance(argument, ast.Starred) for argument in call.args):
            continue
        named = [keyword.value for keyword in call.keywords if keyword.arg == "fix"]
        assert len(call.args) > FIX or named, f"line {call.lineno}: where, found, expected and fix"
        fix = named[0] if named else call.args[FIX]
        if isinstance(fix, ast.Name):
            values = [a.value for a in assigned for target in a.targets if ast.unparse(target) == fix.id]
        else:
            values = [fix]
        for value in values:
            if isinstance(value, ast.Constant):
                yield call.lineno, str(value.value)
            elif isinstance(value, ast.JoinedStr):
                yield call.lineno, "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in value.values)


def test_every_error_of_the_code_has_a_fix() -> None:
    """Read in the code, so that errors which no test raises are seen too; that a computed fix is none too short is
    asserted where errors are made."""
    num_seen = 0
    for path in SOURCES:
        for line, fix in fixes(ast.parse(path.read_text(encoding="utf-8"))):
            assert len(re.findall(r"[\w{}`]+", fix)) >= 2, f"{path.relative_to(ROOT)}:{line}: {fix!r}"
            num_seen += 1
    assert num_seen > 80


def shape(error: UserError) -> list[str]:
    """Its lines, which are findings, each followed by its fix."""
    lines = str(error).splitlines()
    assert lines and len(lines) % 2 == 0
    for finding, fix in zip(lines[::2], lines[1::2], strict=True):
        assert re.fullmatch(r"\S.*: .+; expected .+", finding), finding
        assert re.fullmatch(r"fix: \S.+", fix), fix
    return lines


def test_real_errors_have_the_shape_that_the_docs_promise(tmp_path: Path) -> None:
    good = params_of("tiny")
    params, (first, second, *_) = tmp_path / "params.yaml", good.split("\n\n")
    for text in (
        "",
        "- a",
        "a: [",
        "\f",
        "1: 2",
        "a: b",
        first,
        second,
        good.replace("image_size_px: 32", "image_size_px: 30"),
    ):
        params.write_text(text)
        with pytest.raises(ConfigError) as caught:
            check.params_file(params)
        shape(caught.value)
    attempts: list[Callable[[], object]] = [
        lambda: check.params_file(tmp_path / "none"),
        lambda: artifact.read(tmp_path, kinds.KINDS["unet"]),
        lambda: artifact.open_tensors(params),
        lambda: artifact.check_file(params, "0" * 64),
        lambda: Shards(tmp_path),
        lambda: Origin.read(b"", "a.png"),
        lambda: attention.select("xformers", torch.device("cpu")),
        lambda: config.from_values(DrawingParams, {"seed": -1}, {"seed": -1}),
    ]
    for attempt in attempts:
        with pytest.raises(UserError) as failed:
            attempt()
        shape(failed.value)
