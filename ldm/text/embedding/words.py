"""Words of captions and prompts."""

import re
import unicodedata
from collections.abc import Iterable

_WORD = re.compile(r"(?<!\w['\u2019])\b[^\W\d_]+")
"""A word is letters only; the s of "cat's" is not one."""


def words_of(texts: Iterable[str]) -> set[str]:
    """All words of some texts, in lower case."""
    # Splitting at spaces first leaves the slower pattern a small set, however many texts there are.
    pieces = set(_plain("\n".join(texts)).split())
    return {word for piece in pieces for word in _WORD.findall(piece)}


def unknown_words(prompts: Iterable[str], texts: Iterable[str]) -> list[str]:
    """Words of prompts that no text has, in the order of the prompts; upper and lower case are the same."""
    known = words_of(texts)
    asked = (word for prompt in prompts for word in _WORD.findall(_plain(prompt)))
    return [word for word in dict.fromkeys(asked) if word not in known]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()
