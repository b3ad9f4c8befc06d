"""What a user reads and the process ends with."""

from ldm.errors import (
    ConfigError,
    IntegrityError,
    Interrupted,
    MachineError,
    NumericsError,
    RejectedError,
    Stopped,
    UserError,
)


def test_a_user_error_says_where_what_is_expected_and_what_to_do() -> None:
    error = IntegrityError("data/a.tar", "sha256 12", "sha256 34", "run dvc pull")
    assert str(error) == "data/a.tar: sha256 12; expected sha256 34\nfix: run dvc pull"


def test_many_findings_are_one_line_each() -> None:
    error = ConfigError.many(["a:1: x", "a:2: y"])
    assert isinstance(error, ConfigError)
    assert str(error) == "a:1: x\na:2: y"


def test_exit_codes() -> None:
    kinds = (ConfigError, RejectedError, IntegrityError, MachineError, NumericsError, Stopped, Interrupted)
    assert [kind.exit_code for kind in kinds] == [2, 3, 4, 5, 6, 75, 130]
    assert all(issubclass(kind, UserError) for kind in kinds)
