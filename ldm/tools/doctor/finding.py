"""What `ldm doctor` finds, one thing at a time. A probe that fails is a finding, too."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.core.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One thing about this machine."""

    name: str
    """What it is about, in a word or two."""
    found: str
    advice: str = ""
    """What to do about it; empty if all is well."""
    machine: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys of section `machine`, and the values that suit what was found."""


Probe = Callable[[], Iterable[Finding]]


def examined(probes: Mapping[str, Probe]) -> Iterator[Finding]:
    """The findings of all probes, in order. What goes wrong in one is told as its finding."""
    for name, probe in probes.items():
        try:
            yield from probe()
        except (UserError, OSError, ImportError, RuntimeError, ValueError, LookupError, ArithmeticError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            yield Finding(name, f"could not be found out ({reason})", "LDM_DEBUG=1 ldm doctor shows more")
