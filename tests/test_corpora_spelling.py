import random
import unicodedata

import pytest

from ldm.corpora import spelling

KEPT = {
    "Persian non-joiner": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Sinhala joiner": "\u0dc1\u0dca\u200d\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf",
    "Malayalam joiner at the end": "\u0d05\u0d35\u0d28\u0d4d\u200d",
    "profession": "a \U0001f469\u200d\U0001f4bb at work",
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "flag of England": "the flag \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "variation selector": "\u2764\ufe0f",
    "Arabic": "\u062a\u0641\u0627\u062d\u0629 \u062d\u0645\u0631\u0627\u0621",
    "Hindi": "\u0932\u093e\u0932 \u0938\u0947\u092c",
    "Japanese": "\u8d64\u3044\u308a\u3093\u3054",
    "quotes and case": "The \u201cBig\u201d Dog\u2019s \u2014 2 \u00d7 3",
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_part_of_the_spelling_stays(name: str) -> None:
    assert spelling.clean(KEPT[name]) == KEPT[name]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a red\tapple \n", "a red apple"),
        ("a\x0bb\x7fc\x85d\u2028e\u2029f\u00a0g\u3000h", "a b c d e f g h"),
        ("safe\u202egnp.exe", "safegnp.exe"),
        ("zero\u200bwidth soft\u00adhyphen \ufeffmark", "zerowidth softhyphen mark"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u200dred \u200capple", "ared apple"),
        ("smuggled\U000e0041\U000e0042\U000e007f", "smuggled"),
        ("\u200d \u200b\u2060\x00", ""),
    ],
)
def test_what_nobody_sees_goes(text: str, cleaned: str) -> None:
    assert spelling.clean(text) == cleaned


def test_a_clean_text_is_not_changed() -> None:
    alphabet = [*"a K\t\0", *"\u0301\u200b\u200c\u200d\u00e9\u0dca\u212a\u037e\u2000\u00a0\u0958\ufe0f\u1100\u1161"]
    alphabet += ["\U0001f3f4", "\U000e0067", "\U000e007f", "\U0001f469", "\u2028", "\ud800"]
    draw = random.Random(0)
    for _ in range(20_000):
        text = "".join(draw.choices(alphabet, k=draw.randrange(9)))
        once = spelling.clean(text)
        assert spelling.clean(once) == once and unicodedata.is_normalized("NFC", once), ascii(text)


@pytest.mark.parametrize(
    ("text", "num_characters", "shorter"),
    [
        ("a red apple", 11, "a red apple"),
        ("a red apple", 10, "a red"),
        ("a red apple", 5, "a red"),
        (
            "\u8d64\u3044 \u308a\u3093\u3054\u8d64\u3044\u308a\u3093\u3054",
            9,
            "\u8d64\u3044 \u308a\u3093\u3054\u8d64\u3044\u308a",
        ),
        ("ab \U0001f469\u200d\U0001f4bb", 5, "ab"),
        ("xy\U0001f1e9\U0001f1ea", 3, "xy"),
        ("xe\u0323\u0301", 3, "x"),
    ],
)
def test_long_texts_are_cut_where_no_character_is_torn(text: str, num_characters: int, shorter: str) -> None:
    assert spelling.cut(text, num_characters) == shorter


def test_misread_bytes_are_told() -> None:
    assert "UTF-16" in (spelling.fault("a\0r\0e\0d\0") or "")
    assert spelling.fault("a\ud800b") == "a lone surrogate"
    assert spelling.fault("a\U0001f469\u200d\U0001f4bb") is None


def test_visible_is_what_has_more_than_marks_and_blanks() -> None:
    seen, unseen = ("a", "\u2764", "...", "\u3164a"), ("\u200d", "\ufe0f", "", "\u180e", "\u3164", "\u2800 \uffa0")
    assert [spelling.is_visible(text) for text in (*seen, *unseen)] == [True] * len(seen) + [False] * len(unseen)
