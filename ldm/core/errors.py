"""Errors that a user can fix: what was found where, what is expected, what to do. Any other exception is a bug."""

from collections.abc import Sequence
from typing import ClassVar, Self


class UserError(Exception):
    """A mistake outside the code. `str()` is what the user reads; `exit_code` is what the process ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, found: str, expected: str, fix: str) -> None:
        assert fix.strip(), f"an error without a fix: {where}: {found}"
        super().__init__(where, found, expected, fix)
        lines = (f"{where}: {found}; expected {expected}", f"fix: {fix}")
        self._messages = ["\n".join(" ".join(line.splitlines()) for line in lines)]

    def __str__(self) -> str:
        return "\n".join(self._messages)

    @classmethod
    def many(cls, errors: "Sequence[UserError]") -> Self:
        """Several errors as one, each with its own fix."""
        assert errors, "an error without a finding"
        joined = cls(*errors[0].args)
        joined._messages = [str(error) for error in errors]
        return joined


class ConfigError(UserError):
    """A value, key or combination of values in a params file that cannot be run."""

    exit_code: ClassVar[int] = 2


class RejectedError(UserError):
    """More samples were rejected than the params allow."""

    exit_code: ClassVar[int] = 3


class IntegrityError(UserError):
    """A file is missing, corrupt, or not what its reader needs."""

    exit_code: ClassVar[int] = 4


class MachineError(UserError):
    """This machine, its settings or its packages cannot do what is asked."""

    exit_code: ClassVar[int] = 5


class NumericsError(UserError):
    """Losses or gradients stopped being finite."""

    exit_code: ClassVar[int] = 6


class Stopped(UserError):
    """The run was asked to stop; its state is saved and the same command continues it."""

    exit_code: ClassVar[int] = 75


class Interrupted(UserError):
    """Ctrl-C: what was written before it stays."""

    exit_code: ClassVar[int] = 130
