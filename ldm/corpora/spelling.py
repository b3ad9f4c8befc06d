"""How texts are spelled: captions and prompts go through the same function, so that equal texts become equal tokens.

Unicode's invisible characters are of two sorts. Some are part of the spelling: joiners in Persian, Sinhala and
Malayalam, those that make one emoji of several, and the letters of a region's flag. The others only steer the
display, such as the direction of a line, or are left by tools, and nobody sees whether they are there.
"""

import re
import unicodedata

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Soft hyphen, zero-width space, marks of direction, word joiner, invisible operators, byte order mark, annotations.
_UNSEEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001]")
# A flag of a region is a black flag, letters and an end mark (Unicode Technical Standard 51, section 1.4.6).
_TAGS = re.compile("(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)|[\U000e0020-\U000e007f]")
# No script of ASCII letters has joiners: what stands there is a watermark or a remainder of a deletion.
_STRAY_JOINERS = re.compile("(?:^|(?<=[\x00-\x7f]))[\u200c\u200d]+")

_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Fillers of Hangul and a pattern of Braille without dots: Unicode has them as letters and symbols."""


def clean(text: str) -> str:
    """A text in composed characters (NFC), single blanks, and without control characters and those that nobody sees.
    A clean text is not changed."""
    text = _CONTROLS.sub(" ", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", _TAGS.sub(r"\1", _UNSEEN.sub("", text)))
        text = unicodedata.normalize("NFC", _STRAY_JOINERS.sub("", " ".join(text.split())))
    return " ".join(text.split())


def is_visible(text: str) -> bool:
    """Whether a text has a letter, number, symbol or punctuation mark that is not blank."""
    return any(unicodedata.category(character)[0] in "LNPS" for character in text if character not in _BLANK_LETTERS)


def fault(text: str) -> str | None:
    """What shows that something is no text but misread bytes; None if nothing does."""
    if "\0" in text:
        return f"a zero character at place {text.index(chr(0))}, as in UTF-16 without a byte order mark"
    return "a lone surrogate" if any("\ud800" <= character <= "\udfff" for character in text) else None


def cut(text: str, num_characters: int) -> str:
    """The first `num_characters` of a clean text at most: cut at a blank if there is one in the second half of them,
    else between two characters as users see them, each of which may be several (Unicode Standard Annex 29)."""
    if len(text) <= num_characters:
        return text
    words = text[: num_characters + 1].rpartition(" ")[0]
    if 2 * len(words) >= num_characters:
        return words
    import regex  # here, since few processes cut anything

    ends = (match.end() for match in regex.finditer(r"\X", text))
    return text[: max((end for end in ends if end <= num_characters), default=0)].rstrip()
