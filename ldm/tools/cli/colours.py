"""Colours of what is printed: on a terminal only. NO_COLOR switches them off, and FORCE_COLOR on (no-color.org,
force-color.org)."""

import os
from typing import Literal, TextIO

from ldm.core.errors import UserError

Style = Literal["bold", "red", "green", "yellow"]
_CODES: dict[Style, int] = {"bold": 1, "red": 31, "green": 32, "yellow": 33}


def painted(text: str, style: Style, stream: TextIO) -> str:
    """The text in a style, if the stream shows colours."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if _has_colours(stream) else text


def of_error(error: UserError, stream: TextIO) -> str:
    """A user's mistake: what is wrong in red, and the word before its fix in green."""
    lines = str(error).splitlines()
    return "\n".join(
        painted("fix:", "green", stream) + line.removeprefix("fix:")
        if line.startswith("fix:")
        else painted(line, "red", stream)
        for line in lines
    )


def _has_colours(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
