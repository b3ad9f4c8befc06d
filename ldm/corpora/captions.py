"""The captions of one sample of a user's corpus, from its text files and its fields.

A text file stands beside the image: KEY.txt in a folder or tar. Fields are what the sample's json, its row of
`metadata.jsonl`, or its row of a parquet file or dataset says about it. Every layout takes captions by `take`.
"""

import codecs
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ldm.corpora import spelling
from ldm.corpora.pairs import Rejected
from ldm.corpora.user_params import CaptionParams

_LINE_END = re.compile(r"\r\n|\r|\n")
"""Those of text editors. Unicode has others, which `str.splitlines` takes too, and which occur within captions."""
_BLANK_LINES = re.compile(r"\n[ \t\n]*\n")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NUM_SHOWN, _LONGEST_SHOWN = 12, 60


Texts = Mapping[str, Callable[[], bytes]]
Fields = Callable[[], Mapping[str, Any]]


def take(texts: Texts, fields: Fields, params: CaptionParams) -> list[str]:
    """The captions of a sample, at least one, clean as in `ldm.corpora.spelling`.

    texts: the bytes of each text file, by suffix, such as ".txt" (lower case). fields: makes the fields; not called
    unless a source asks for one.

    Raises:
        Rejected: MISSING_CAPTION, EMPTY_CAPTION, LONG_CAPTION, NOT_UTF8, and what `texts` and `fields` raise.
    """
    is_there, captions = False, list[str]()
    for source, weight in zip(params.sources, params.weights or [1] * len(params.sources), strict=True):
        raw = _of_source(source, texts, fields, params)
        found = [caption for text in raw or () if (caption := _clean(text, source, params))]
        is_there |= raw is not None
        captions += [caption for caption in found for _ in range(weight)]
        if captions and params.weights is None:
            break
    if not captions:
        looked = ", ".join(params.sources)
        detail = f"nothing but blanks in {looked}" if is_there else f"none of {looked}"
        raise Rejected("EMPTY_CAPTION" if is_there else "MISSING_CAPTION", f"{detail}; {_what_is_there(texts, fields)}")
    return captions


def decode(data: bytes, where: str) -> str:
    """Bytes as text: UTF-8 with or without byte order mark, or UTF-16 with one. where: what they are, for the reason of
    a rejection. Rejected: NOT_UTF8."""
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejected(
            "NOT_UTF8", f"{where}: byte {error.start}: {data[error.start : error.start + 4].hex()}"
        ) from None
    if (fault := spelling.fault(text)) is not None:
        raise Rejected("NOT_UTF8", f"{where}: {fault}")
    return text


def fields_of(data: bytes, name: str) -> dict[str, Any]:
    """The fields of a json file. Rejected: BAD_JSON, NOT_UTF8."""
    text = decode(data, name)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected("BAD_JSON", f"{name}: {error}") from None
    if not isinstance(fields, dict):
        raise Rejected("BAD_JSON", f"{name} holds {_kind(fields)}, not fields with names")
    return fields


def _of_source(source: str, texts: Texts, fields: Fields, params: CaptionParams) -> list[str] | None:
    """Raw captions of a source; None if it is not there, or no text."""
    if source.startswith("."):
        return _split(decode(texts[source](), source), params.text_files) if source in texts else None
    value = _field(fields(), source)
    if isinstance(value, list):
        return [item for item in value if isinstance(item, str)]
    return [value] if isinstance(value, str) else None


def _field(fields: Mapping[str, Any], name: str) -> Any:
    """A field, or one within a field: "a.b"."""
    if name in fields:
        return fields[name]
    first, _, rest = name.partition(".")
    inner = fields.get(first)
    return _field(inner, rest) if rest and isinstance(inner, Mapping) else None


def _split(text: str, text_files: str) -> list[str]:
    lines = _LINE_END.sub("\n", text)
    match text_files:
        case "one_per_line":
            return lines.split("\n")
        case "paragraphs":
            return _BLANK_LINES.split(lines)
        case _:
            return [text]


def _clean(text: str, source: str, params: CaptionParams) -> str:
    if (fault := spelling.fault(text)) is not None:
        raise Rejected("NOT_UTF8", f"{source}: {fault}")
    caption = spelling.clean(text)
    if len(caption) > params.max_characters:
        if params.too_long == "reject":
            raise Rejected("LONG_CAPTION", f"{source}: {len(caption)} characters")
        caption = spelling.cut(caption, params.max_characters)
    return caption if spelling.is_visible(caption) else ""


def _what_is_there(texts: Texts, fields: Fields) -> str:
    try:
        named = [name if isinstance(value, str) else f"{name} ({_kind(value)})" for name, value in fields().items()]
    except Rejected as error:
        named = [error.detail]
    names = [name[:_LONGEST_SHOWN].encode("utf-8", "backslashreplace").decode() for name in [*texts, *named]]
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return f"there are {', '.join(names[:_NUM_SHOWN])}{more}" if names else "there is nothing else"


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "a mapping", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
