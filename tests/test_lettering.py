"""Captions in pictures: every script is drawn or written out, and plain text as Pillow's own font draws it."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from ldm.core import lettering

WIDTH = 128
CAT, WANT = "\u06af\u0631\u0628\u0647", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"
"""Persian words, as code points: their letters run from right to left."""
CIRCLE, GREAT, PEACE = "\u043a\u0440\u0443\u0433", "\u03bc\u03ad\u03b3\u03b1", "\u05e9\u05dc\u05d5\u05dd"
"""Words in Cyrillic, Greek and Hebrew."""


with_fribidi = pytest.mark.skipif(not features.check("raqm"), reason="needs FriBiDi: apt-get install libfribidi0")


def drawn(text: str, num_lines: int = 4) -> np.ndarray:
    canvas = Image.new("RGB", (WIDTH, 64), "white")
    lettering.write(ImageDraw.Draw(canvas), text, 0, 0, WIDTH, num_lines)
    return np.asarray(canvas)


def boxes(text: str) -> np.ndarray:
    """What Pillow's own font makes of a text."""
    canvas = Image.new("RGB", (WIDTH, 64), "white")
    ImageDraw.Draw(canvas).text((0, 1), text, fill="black", font=ImageFont.load_default(13))
    return np.asarray(canvas)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second)


def test_plain_text_is_drawn_by_pillows_own_font() -> None:
    assert same(drawn("a small red circle"), boxes("a small red circle"))


@pytest.mark.parametrize("text", [CAT, CIRCLE, GREAT, PEACE, "Käse", "😀", "🇩🇪"])
def test_what_that_font_lacks_is_drawn_by_another(text: str) -> None:
    found = drawn(text)
    assert (found < 128).any() and not same(found, boxes(text))
    assert not same(found, drawn(text.encode("unicode_escape").decode())), "drawn, not written out"


@with_fribidi
def test_emojis_have_colours_and_joined_ones_are_one_picture() -> None:
    flag = drawn("🇩🇪").astype(int)
    assert (flag.max(axis=2) - flag.min(axis=2) > 100).any(), "red and yellow"
    assert not same(drawn("👩‍💻"), drawn("👩💻"))


@with_fribidi
def test_joiners_that_no_font_shows_change_the_letters_beside_them() -> None:
    assert not same(drawn(f"{WANT[:2]}\u200c{WANT[2:]}"), drawn(WANT))


def test_a_character_that_no_font_has_is_written_as_python_writes_it() -> None:
    assert same(drawn("\u4e00 red"), drawn(r"\u4e00 red"))
    assert not same(drawn("\u4e00 red"), boxes("\u4e00 red"))


def test_a_line_from_right_to_left_has_its_first_word_at_its_right() -> None:
    cat = drawn("cat")[:, :18]
    assert same(drawn(f"{CAT} cat 😀")[:, :12], drawn("😀")[:, :12]), "the last word is at the left"
    assert same(drawn("cat 😀")[:, :18], cat)


def test_text_is_wrapped_and_dots_mark_what_is_cut_off() -> None:
    long = " ".join(["word"] * 40)
    assert (drawn(long, 2)[32:] == 255).all() and (drawn(long, 3)[32:] < 128).any()
    assert not same(drawn(long, 1)[:16], drawn(long, 2)[:16]), "dots end the last line alone"
    for word in ("w" * 200, "\u4e00" * 200, CAT * 50):
        assert (drawn(word)[18:] == 255).all(), "a long word is cut to one line"
