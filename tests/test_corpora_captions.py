import codecs
import json
from typing import Any

import pytest

from ldm.corpora import captions, spelling
from ldm.corpora.pairs import Rejected
from tests.corpora import CAPTIONS


def _take(texts: dict[str, str | bytes], fields: dict[str, Any], **changes: Any) -> list[str]:
    raw = {suffix: text if isinstance(text, bytes) else text.encode() for suffix, text in texts.items()}
    readers = {suffix: (lambda data=data: data) for suffix, data in raw.items()}
    return captions.take(readers, lambda: fields, CAPTIONS.model_copy(update=changes))


def _rejected(texts: dict[str, str | bytes], fields: dict[str, Any], **changes: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        _take(texts, fields, **changes)
    return caught.value


# Text files

PARAGRAPHS = "A red fox.\nIt is wet.\r\n\r\nThe light\u2028comes from\u0085the left.\n \n\nStyle: photograph.\n"


@pytest.mark.parametrize(
    ("text_files", "expected"),
    [
        ("one_caption", ["A red fox. It is wet. The light comes from the left. Style: photograph."]),
        ("one_per_line", ["A red fox.", "It is wet.", "The light comes from the left.", "Style: photograph."]),
        ("paragraphs", ["A red fox. It is wet.", "The light comes from the left.", "Style: photograph."]),
    ],
)
def test_one_setting_says_what_a_text_file_holds(text_files: str, expected: list[str]) -> None:
    assert _take({".txt": PARAGRAPHS}, {}, text_files=text_files) == expected
    assert _take({".txt": PARAGRAPHS.replace("\n", "\r").replace("\r\r", "\r")}, {}, text_files="one_per_line") == [
        *("A red fox.", "It is wet.", "The light comes from the left.", "Style: photograph.")
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_tell_encodings(encoding: str) -> None:
    assert _take({".txt": "a red caf\u00e9".encode(encoding)}, {}) == ["a red caf\u00e9"]
    assert captions.decode(codecs.BOM_UTF16_BE + "caf\u00e9".encode("utf-16-be"), "x.txt") == "caf\u00e9"


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"a dog\x92s dinner", ".txt: byte 5: 92732064"),
        ("\u8d64\u3044\u308a\u3093\u3054".encode("shift-jis"), "byte 0: 90d482a2"),
        ("a red apple".encode("utf-16-le"), "a zero character at place 1, as in UTF-16"),
        ("a red apple".encode("utf-16-be"), "a zero character at place 0, as in UTF-16"),
        ("a red apple".encode("utf-32"), "a zero character"),
        (codecs.BOM_UTF16_LE + b"a", "byte 2: 61"),
    ],
)
def test_other_encodings_are_rejected_and_never_become_blanks(data: bytes, detail: str) -> None:
    error = _rejected({".txt": data}, {})
    assert error.reason == "NOT_UTF8" and detail in error.detail


def test_zeros_and_surrogates_in_fields_are_rejected_too() -> None:
    for text in ('"a\\u0000b"', '"a\\ud800b"'):
        assert _rejected({}, {"caption": json.loads(text)}).reason == "NOT_UTF8"


@pytest.mark.parametrize(
    "text", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "  a \u200bcafe\u0301\t\U0001f469\u200d\U0001f4bb "]
)
def test_a_prompt_typed_as_the_caption_is_the_caption(text: str) -> None:
    """`Generator.condition` cleans prompts by this function; `tests/test_pipeline_api.py` holds that it does."""
    assert _take({".txt": text}, {}) == _take({}, {"caption": [text]}) == [spelling.clean(text)]


CASES = {
    '{"caption": ["a cat", "a cat on a mat"]}': ["a cat", "a cat on a mat"],
    '{"text": "a dog"}': ["a dog"],
    '{"caption": "IMG_0032.JPG", "recaption": "a brown horse in a field"}': ["a brown horse in a field"],
    '{"captions": ["x", "y"]}': "MISSING_CAPTION: none of recaption, caption, text; there are captions (a list)",
    '["a", "b"]': "BAD_JSON: l.json holds a list, not fields with names",
    '{"caption": "", "TEXT": "a"}': "EMPTY_CAPTION: nothing but blanks in recaption, caption, text; there are caption,",
}


@pytest.mark.parametrize("data", CASES)
def test_captions_in_json(data: str) -> None:
    """Case `wds_json_captions`: every field can be named, and a reason says what was found instead."""
    params = CAPTIONS.model_copy(update={"sources": ["recaption", "caption", "text"]})
    try:
        found: list[str] | str = captions.take({}, lambda: captions.fields_of(data.encode(), "l.json"), params)
    except Rejected as error:
        found = f"{error.reason}: {error.detail}"
    expected = CASES[data]
    assert found == expected if isinstance(expected, list) else found[: len(expected)] == expected


# Sources


def test_the_first_source_that_has_captions_gives_them() -> None:
    both = {"caption": "IMG_0032.JPG", "recaption": "a brown horse in a field"}
    assert _take({".txt": "alt text"}, both) == ["alt text"]
    assert _take({".txt": " \n\u200b"}, both) == ["IMG_0032.JPG"], "an empty text file is no reason to look no further"
    assert _take({".txt": "alt text"}, both, sources=["recaption", ".txt"]) == ["a brown horse in a field"]
    assert _take({".outputs.txt": "out"}, {}, sources=[".outputs.txt"]) == ["out"]


def test_fields_are_texts_or_lists_of_texts_and_may_lie_within_fields() -> None:
    assert _take({}, {"caption": ["a cat", "", None, "a cat on a mat"]}) == ["a cat", "a cat on a mat"]
    assert _take({}, {"caption": "two\nlines"}) == ["two lines"]
    assert _take({}, {"meta": {"text": {"en": "deep"}}}, sources=["meta.text.en"]) == ["deep"]
    assert _take({}, {"meta.text": "flat"}, sources=["meta.text"]) == ["flat"]


def test_weights_list_captions_of_all_sources_so_many_times() -> None:
    fields = {"alt": "IMG 32", "recaption": ["a horse", "a field"]}
    weighted = {"sources": ["alt", "recaption", ".txt"], "weights": [1, 3, 1]}
    assert _take({}, fields, **weighted) == ["IMG 32", *["a horse"] * 3, *["a field"] * 3]


def test_fields_are_not_made_unless_they_are_needed() -> None:
    def refuse() -> dict[str, Any]:
        raise Rejected("BAD_JSON", "x.json")

    assert captions.take({".txt": lambda: b"a"}, refuse, CAPTIONS) == ["a"]
    with pytest.raises(Rejected, match="BAD_JSON"):
        captions.take({}, refuse, CAPTIONS)
    only_texts = CAPTIONS.model_copy(update={"sources": [".txt"]})
    with pytest.raises(Rejected, match="MISSING_CAPTION"):
        captions.take({}, refuse, only_texts)


# Rejections


@pytest.mark.parametrize(
    ("texts", "fields", "reason", "detail"),
    [
        ({}, {}, "MISSING_CAPTION", "none of .txt, .caption, caption, text; there is nothing else"),
        ({}, {"captions": ["x", "y"], "n": 3}, "MISSING_CAPTION", "; there are captions (a list), n (a number)"),
        ({}, {"caption": {"en": "x"}}, "MISSING_CAPTION", "; there are caption (a mapping)"),
        ({}, {"\ud800" + "x" * 99: 1}, "MISSING_CAPTION", "; there are \\ud800" + "x" * 59),
        ({}, {"caption": None}, "MISSING_CAPTION", "caption (null)"),
        ({}, {"caption": "", "TEXT": "a"}, "EMPTY_CAPTION", "; there are caption, TEXT"),
        ({".txt": "\n \u200b\n"}, {}, "EMPTY_CAPTION", "nothing but blanks in .txt, .caption, caption, text"),
        ({".txt": "fine\n" + "x" * 201}, {}, "LONG_CAPTION", ".txt: 201 characters"),
    ],
)
def test_a_rejection_says_what_was_looked_for_and_what_is_there(
    texts: dict[str, str | bytes], fields: dict[str, Any], reason: str, detail: str
) -> None:
    error = _rejected(texts, fields)
    assert error.reason == reason and detail in error.detail


def test_long_captions_are_cut_if_the_params_say_so() -> None:
    assert _take({".txt": "word " * 100}, {}, too_long="cut") == [("word " * 40).strip()]
    assert _take({".txt": "x" * 200}, {}) == ["x" * 200]


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b'["a", "b"]', b"3", b'"a"', b"\xff"])
def test_json_without_fields_is_rejected(data: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        captions.fields_of(data, "l5.json")
    assert caught.value.reason == ("NOT_UTF8" if data == b"\xff" else "BAD_JSON")
    if data.startswith(b'["'):
        assert caught.value.detail == "l5.json holds a list, not fields with names"


# Params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "sources"),
        ({"sources": [".TXT"]}, "sources"),
        ({"sources": ["a", "a"]}, "names one twice"),
        ({"weights": [1]}, "1 weights of 4 sources"),
        ({"weights": [1, 1, 1, 0]}, "weights"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        type(CAPTIONS).model_validate(CAPTIONS.model_dump() | changes)
