"""Metadata files of Hugging Face's imagefolder: `metadata.jsonl`, `.csv` or `.parquet` beside images, a row for each.

A row names its image in the field `file_name`, or the only one whose name ends in `_file_name`, by a path that is
relative to the metadata file. Several rows of one image are one row, whose fields are lists.
"""

import csv
import io
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.progress import count
from ldm.corpora import captions
from ldm.corpora.files import Files, in_utf8
from ldm.corpora.pairs import Rejected, Rejection, key_of

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

Row = dict[str, Any]


@dataclass(frozen=True)
class Metadata:
    """All rows of a corpus."""

    rows: dict[str, Row] = field(default_factory=dict[str, Row])
    """By the path of the image below the root of the corpus, in composed characters (NFC)."""
    places: dict[str, str] = field(default_factory=dict[str, str])
    """Where each of them is, such as "a/metadata.jsonl:3"."""
    rejections: list[Rejection] = field(default_factory=list[Rejection])
    """Rows that say nothing: BAD_METADATA."""


def read(files: Files, names: Iterable[str]) -> Metadata:
    """The rows of those files among `names` that are metadata.

    Raises:
        ConfigError: a file does not say which field names the images.
        IntegrityError: a file cannot be read as what it is called.
    """
    found = Metadata()
    for name in names:
        if posixpath.basename(name).lower() in NAMES:
            _add(found, name, files)
    return found


def _add(found: Metadata, name: str, files: Files) -> None:
    folder, column = posixpath.dirname(name), None
    for number, row in _rows(name, files):
        place = f"{name}:{number}"
        if isinstance(row, str):
            found.rejections.append(
                Rejection(key_of(place), "BAD_METADATA", in_utf8(f"{place}: {row}"), _source(place))
            )
            continue
        column = column or _column(name, list(row))
        image = row.get(column)
        if not isinstance(image, str) or not image:
            detail = in_utf8(f"{place}: no text in {column}")
            found.rejections.append(Rejection(key_of(place), "BAD_METADATA", detail, _source(place)))
            continue
        path = posixpath.join(folder, image.replace("\\", "/"))  # as Windows writes paths
        path = unicodedata.normalize("NFC", posixpath.normpath(path))
        found.rows[path] = _joined(found.rows[path], row) if path in found.rows else row
        found.places.setdefault(path, place)


def _rows(name: str, files: Files) -> Iterator[tuple[int, Row | str]]:
    """Every row with its number from 1 on, of a CSV file with its line, or what is wrong with it."""
    kind = name.lower().rpartition(".")[2]
    try:
        data = files.read(name)
        match kind:
            case "jsonl":
                yield from _of_jsonl(captions.decode(data, name))
            case "csv":
                yield from _of_csv(captions.decode(data, name))
            case _:
                yield from enumerate(_of_parquet(data), 1)
    except (Rejected, csv.Error, ArithmeticError, OSError, ValueError) as error:
        found = error.detail if isinstance(error, Rejected) else str(error)
        fix = "write it again, or add its name to prepare.corpus.ignore"
        raise IntegrityError(str(files.root / name), found, f"a {kind} file", fix) from None


def _of_jsonl(text: str) -> Iterator[tuple[int, Row | str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, str(error)
        else:
            yield number, row if isinstance(row, dict) else "no fields with names"


def _of_csv(text: str) -> Iterator[tuple[int, Row | str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for row in reader:
        number = reader.line_num  # of the last one, where a text has several
        if extra := row.pop(None, None):
            yield number, f"{count(len(extra), 'value')} too many; a text with commas needs quotes"
        else:
            yield number, row


def _of_parquet(data: bytes) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    return parquet.read_table(pyarrow.BufferReader(data)).to_pylist()


def _column(name: str, columns: list[str]) -> str:
    named = [column for column in columns if column.endswith("_file_name")]
    if "file_name" not in columns and len(named) != 1:
        fix = "rename the column of paths to file_name, or add the file to prepare.corpus.ignore"
        raise ConfigError(name, f"columns {', '.join(columns)}", "one that is called file_name", fix)
    return "file_name" if "file_name" in columns else named[0]


def _joined(one: Row, other: Row) -> Row:
    return {name: _listed(one.get(name)) + _listed(other.get(name)) for name in {**one, **other}}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _source(place: str) -> dict[str, Any]:
    return {"corpus": "folder", "file": in_utf8(place)}
