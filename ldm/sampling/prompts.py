"""Prompts, before any model is loaded: which are accepted, and how they are read from a file."""

import sys
from collections.abc import Iterable
from pathlib import Path
from unicodedata import category

from ldm.core.errors import ConfigError
from ldm.sampling.params import MAX_CHARACTERS

STANDARD_INPUT = "-"
_SHOWN_CHARACTERS = 60
_JOINERS = "\u200c\u200d"


def texts_of(prompts: str | Iterable[str]) -> list[str]:
    """One prompt or several as a list; "" means no caption. ConfigError: the list is empty, or one is not a string that
    UTF-8 can encode."""
    fix = 'give one string or a list of strings, such as ["a red circle"]'
    if not isinstance(prompts, str | Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError("prompts", f"{prompts!r}, a {type(prompts).__name__}", "a string or a list of strings", fix)
    texts: list[object] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ConfigError("prompts", "none", "at least one", fix)
    return [_checked(text, f"prompt {number}") for number, text in enumerate(texts, 1)]


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str):
        found = f"{shortened(repr(text))}, a {type(text).__name__}"
        raise ConfigError(where, found, "a string", "give strings only")
    if not _is_encodable(text):
        fix = "write it in UTF-8, as a terminal with a UTF-8 locale does"
        raise ConfigError(where, f"{shortened(text)!r} has bytes that are not UTF-8", "text in UTF-8", fix)
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(where, f"{len(text)} characters", f"at most {MAX_CHARACTERS}", "shorten it")
    return text


def read(path: str) -> list[str]:
    """The prompts of a UTF-8 file, one per line, or of standard input for `-`; blank lines are skipped.

    ConfigError: the file cannot be read or has no prompt, or a line (which is named) is not UTF-8.
    """
    where = "standard input" if path == STANDARD_INPUT else path
    lines = _bytes_of(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    prompts: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02x} is not UTF-8"
            raise ConfigError(f"{where}:{number}", found, "a prompt in UTF-8", "save the file as UTF-8") from None
        if "\0" in text:
            raise ConfigError(f"{where}:{number}", "a zero byte", "a prompt in UTF-8", "save the file as UTF-8")
        if text:
            prompts.append(_checked(text, f"{where}:{number}"))
    if not prompts:
        raise ConfigError(where, "no prompt", "one prompt per line", "write one, or give prompts as arguments")
    return prompts


def _bytes_of(path: str) -> bytes:
    try:
        if path != STANDARD_INPUT:
            return Path(path).read_bytes()
        if sys.stdin is not None:  # pyright: ignore[reportUnnecessaryComparison]
            return sys.stdin.buffer.read()
        reason = "it is closed"
    except OSError as error:
        reason = error.strerror or str(error)
    raise ConfigError(path, f"cannot be read ({reason})", "a file with one prompt per line", "name one")


def shortened(text: str) -> str:
    """A text on one line of at most 60 characters, for messages."""
    line = on_one_line(text)
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "..."


def on_one_line(text: str) -> str:
    """A text with its control characters as escapes. Joiners, which Persian and emoji are spelled with, and spaces of
    other widths stay; marks that turn the direction of a line do not."""
    return "".join(c if _is_shown(c) or not _is_encodable(c) else repr(c)[1:-1] for c in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or category(character) == "Zs"


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
