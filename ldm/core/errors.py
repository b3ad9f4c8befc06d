"""Errors that a user can repair: what was found where, what is expected, what to do. Any other error is our bug."""

from collections.abc import Sequence
from typing import ClassVar, Self


class UserError(Exception):
    """A mistake outside the code. `str()` is what the user reads; `exit_code` is what the process ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, found: str, expected: str, fix: str) -> None:
        assert fix.strip(), f"an error without a fix: {where}: {found}"
        line, fix = (" ".join(text.splitlines()) for text in (f"{where}: {found}; expected {expected}", fix))
        super().__init__(f"{line}\nfix: {fix}")

    @classmethod
    def many(cls, errors: "Sequence[UserError]") -> Self:
        """Several errors as one, each with its own fix."""
        assert errors, "an error without a finding"
        error = cls.__new__(cls)
        Exception.__init__(error, "\n".join(map(str, errors)))
        return error


class ConfigError(UserError):
    """A value, key or combination of values in a params file that cannot be run."""

    exit_code: ClassVar[int] = 2


class RejectedError(UserError):
    """More samples were rejected than the params allow."""

    exit_code: ClassVar[int] = 3


class IntegrityError(UserError):
    """A file is missing, corrupt or of another make than its reader needs."""

    exit_code: ClassVar[int] = 4


class MachineError(UserError):
    """This machine, its settings or its packages cannot do what was asked."""

    exit_code: ClassVar[int] = 5


class NumericsError(UserError):
    """Losses or gradients stopped being finite."""

    exit_code: ClassVar[int] = 6


class Stopped(UserError):
    """The run was asked to stop; its state is saved and the same command continues it."""

    exit_code: ClassVar[int] = 75


class Interrupted(UserError):
    """Ctrl-C: what was written until then stays."""

    exit_code: ClassVar[int] = 130
