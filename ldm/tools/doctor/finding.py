"""What `ldm doctor` finds, one thing at a time. A probe that fails is a finding, too."""

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.core.errors import UserError

_FIX = "fix: "


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
    """The findings of all probes, in order. What goes wrong in one is told as its finding: a user's mistake with its
    fix, and anything else by its reason, with its traceback on stderr if LDM_DEBUG=1."""
    for name, probe in probes.items():
        try:
            yield from probe()
        except UserError as error:
            lines = str(error).splitlines()
            fixes = [line.removeprefix(_FIX) for line in lines if line.startswith(_FIX)]
            found = [line for line in lines if not line.startswith(_FIX)]
            yield Finding(name, "; ".join(found), "; ".join(dict.fromkeys(fixes)))
        except Exception as error:
            if os.environ.get("LDM_DEBUG") == "1":
                traceback.print_exc()
            reason = " ".join(str(error).split()) or type(error).__name__
            yield Finding(name, f"could not be found out ({reason})", "LDM_DEBUG=1 ldm doctor shows more")
