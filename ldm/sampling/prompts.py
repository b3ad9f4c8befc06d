"""Prompts before any model is loaded: which are accepted, how a file of them is read, and which of their words no
caption has."""

import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ldm.core.errors import ConfigError

STANDARD_INPUT = "-"
MAX_CHARACTERS = 10**5
"""In one prompt, thousands of times what a text encoder reads; it is carried in the PNG."""
_SHOWN_CHARACTERS = 60
_WORD = re.compile(r"(?<!\w['\u2019])\b[^\W\d_]+")
"""Letters; not the s of "cat's"."""


def texts_of(prompts: str | Iterable[str]) -> list[str]:
    """One prompt or several as a list; "" means no caption. ConfigError: there is none, or one is not a text that
    UTF-8 can encode."""
    fix = 'give one text or a list of texts, such as ["a red circle"]'
    if not isinstance(prompts, str | Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError("prompts", f"{prompts!r}, a {type(prompts).__name__}", "a text or a list of texts", fix)
    texts: list[object] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ConfigError("prompts", "none", "at least one", fix)
    return [_checked(text, f"prompt {number}") for number, text in enumerate(texts, 1)]


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str):
        found = f"{shortened(repr(text))}, a {type(text).__name__}"
        raise ConfigError(where, found, "a text", "give texts only")
    if not _is_encodable(text):
        fix = "write it in UTF-8, as a terminal with a UTF-8 locale does"
        raise ConfigError(where, f"{shortened(text)!r} has bytes that are not UTF-8", "a text in UTF-8", fix)
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(where, f"{len(text)} characters", f"at most {MAX_CHARACTERS}", "shorten it")
    return text


def read(path: str) -> list[str]:
    """The prompts of a UTF-8 file, one per line, or of standard input for `-`; blank lines are skipped.

    ConfigError: the file cannot be read, holds no prompt, or a line, which is named, is not UTF-8.
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


def unknown_words(prompts: Iterable[str], captions: Iterable[str]) -> list[str]:
    """Words of prompts that no caption has, whatever their case, in the order of the prompts."""
    # Splitting at spaces first leaves the slower pattern a small set, however many captions there are.
    pieces = set(_plain("\n".join(captions)).split())
    known = {word for piece in pieces for word in _WORD.findall(piece)}
    asked = (word for prompt in prompts for word in _WORD.findall(_plain(prompt)))
    return [word for word in dict.fromkeys(asked) if word not in known]


def shortened(text: str) -> str:
    """A text on one line of at most 60 characters, for messages."""
    line = on_one_line(text)
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "..."


def on_one_line(text: str) -> str:
    """A text with its control characters as escapes."""
    return "".join(c if c.isprintable() or not _is_encodable(c) else repr(c)[1:-1] for c in text)


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()
