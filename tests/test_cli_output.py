"""Where images of a command go, without a command."""

import sys
import warnings
from argparse import Namespace
from pathlib import Path

import pytest

from ldm.core.errors import Interrupted
from ldm.tools.cli import output


def options(directory: Path, seeds: list[int] | None = None, overwrite: bool = False) -> Namespace:
    return Namespace(output=directory, start_number=0, overwrite=overwrite, seeds=seeds)


def test_what_is_written_is_printed_beside_its_label(tmp_path: Path, capsys) -> None:
    with output.opened(options(tmp_path), 2) as add:
        output.write([b"a", b"b"], ["one", "two\x07"], add)
    assert capsys.readouterr().out == f"{tmp_path}/0000.png  one\n{tmp_path}/0001.png  two\\x07\n"
    with output.opened(options(Path("-")), 1) as add:
        assert add(b"") is None


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        (0, "run it again"),
        (2, "give --seed 5-7"),
        (3, "give --seed 5-7; the first 1 of seed 5 are there already"),
        (6, "give --seed 7"),
    ],
)
def test_after_ctrl_c_the_seeds_that_are_left_are_named(tmp_path: Path, written: int, rest: str) -> None:
    with pytest.raises(Interrupted) as error, output.opened(options(tmp_path, [4, 5, 6, 7]), 8) as add:
        for _ in range(written):
            add(b"")
        raise KeyboardInterrupt
    assert str(error.value).endswith(f"for the others, {rest}") and f"{written} of 8 images" in str(error.value)


def test_what_was_replaced_before_ctrl_c_is_not_to_be_replaced_again(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as error, output.opened(options(tmp_path, [4, 5], overwrite=True), 4) as add:
        for _ in range(3):
            add(b"")
        raise KeyboardInterrupt
    assert str(error.value).endswith("give --seed 5, without --overwrite; the first 1 of seed 5 are there already")


def test_a_warning_is_one_line(capsys) -> None:
    with output.plain_warnings():
        warnings.warn("too long", stacklevel=1)
    assert capsys.readouterr().err == "warning: too long\n" and sys.stderr is not None
