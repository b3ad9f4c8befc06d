"""Rows of a table of a user's, such as a parquet file: an image or its path, and fields that may be captions."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow

from ldm.corpora import captions, pixels
from ldm.corpora.files import Files, in_utf8
from ldm.corpora.pairs import ByContent, Pair, Rejected, Rejection, key_of
from ldm.corpora.pixels_params import PixelParams
from ldm.corpora.user_params import DatasetsParams, ParquetParams

Row = Mapping[str, Any]
_WRONG_VALUES = (pyarrow.ArrowException, ArithmeticError, LookupError, TypeError, ValueError)
"""What Python makes of a value raises: a text that is not UTF-8, a date beyond its years."""
_LEADING = re.compile(r"^(\.?\.?/)+")


@dataclass
class Table:
    """A table while its rows become pairs, in the order of the table."""

    name: str
    """What its samples are called by: their names begin with it, and it is their group."""
    params: ParquetParams | DatasetsParams
    size_px: int
    is_captioned: bool
    files: Files | None
    """Where paths in rows lead to, and the folder of the table in them; None = there are only bytes."""
    folder: str = ""
    spelled: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names in NFC -> names of files, where these differ: a Mac writes its own as NFD."""
    _seen: set[str] = field(default_factory=set[str])

    def columns(self) -> list[str]:
        """Names of the columns that are read, if they are there."""
        fields = [source for source in self.params.captions.sources if not source.startswith(".")]
        inner = [source.partition(".")[0] for source in fields]
        return list(dict.fromkeys([self.params.image, *(fields + inner if self.is_captioned else [])]))

    def pairs(self, rows: Iterable[Row | str], first: int = 0) -> Iterator[Pair | Rejection]:
        """Every row; `first` is the number of the first one. What is wrong with a row stands in place of a DAMAGED
        one."""
        for number, row in enumerate(rows, first):
            yield self.rejection(number, "DAMAGED", row) if isinstance(row, str) else self._pair(number, row)

    def rejection(self, number: int, reason: str, detail: str) -> Rejection:
        """A row that is not used."""
        return Rejection(key_of(self._numbered(number)), reason, detail, self._source(number))

    def _pair(self, number: int, row: Row) -> Pair | Rejection:
        data, path = _bytes_and_path(row.get(self.params.image))
        sample = self._sample(number, None if data is None else self.name, path)
        key, source = key_of(sample), self._source(number)
        try:
            image = self._image(data, path)
            texts = self._captions(row) if self.is_captioned else [""]
        except Rejected as error:
            return Rejection(key, error.reason, error.detail, source)
        return Pair(
            key=key,
            image=image,
            captions=texts,
            claims=[None] * len(texts),
            scene=None,
            split=ByContent(self.params.val_fraction, self.params.seed),
            source=source,
            group=sample.partition("/")[0] if "/" in sample else "",
        )

    def _image(self, data: bytes | None, path: str | None) -> Callable[[], Any]:
        params = self.params.pixels
        if data is not None:
            if len(data) > params.max_bytes:
                raise Rejected("TOO_MANY_BYTES", f"{len(data)} bytes")
            return partial(pixels.clean, data, params, self.size_px)
        if path is None or self.files is None:
            raise Rejected("MISSING_IMAGE", f"no image in column {self.params.image}")
        return partial(_read, self.files, self._file(path), params, self.size_px)

    def _captions(self, row: Row) -> list[str]:
        fields = {name: value for name, value in row.items() if name != self.params.image}
        return captions.take({}, lambda: fields, self.params.captions)

    def _file(self, path: str) -> str:
        name = posixpath.normpath(posixpath.join(self.folder, path.replace("\\", "/")))  # as Windows writes paths
        if name.startswith(("../", "/")):
            raise Rejected("UNSAFE_PATH", path)
        return self.spelled.get(unicodedata.normalize("NFC", name), name)

    def _sample(self, number: int, table: str | None, path: str | None) -> str:
        """Name of a sample: the path of its image without suffix, or the number of the row. Of bytes in a table, below
        the name of the table."""
        if path is None:
            return self._numbered(number)
        stem = os.path.splitext(posixpath.normpath(unicodedata.normalize("NFC", path.replace("\\", "/"))))[0]
        if table is not None:
            stem = _LEADING.sub("", stem)  # where the bytes once were says nothing about this table
        name = posixpath.normpath(posixpath.join(self.folder if table is None else table, stem))
        if name in self._seen:
            return f"{name}#{number}"
        self._seen.add(name)
        return name

    def _numbered(self, number: int) -> str:
        return f"{self.name}/{number:09d}"

    def _source(self, number: int) -> dict[str, Any]:
        return {"corpus": self.params.kind, "table": in_utf8(self.name), "row": number}


def rows_of(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Every row, or what is wrong with one."""
    try:
        yield from batch.to_pylist()
    except _WRONG_VALUES:
        for number in range(batch.num_rows):
            try:
                (row,) = batch.slice(number, 1).to_pylist()
            except _WRONG_VALUES as error:
                yield line(error)
            else:
                yield row


def line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def _bytes_and_path(value: Any) -> tuple[bytes | None, str | None]:
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        return data if isinstance(data, bytes) else None, path if isinstance(path, str) else None
    return (value, None) if isinstance(value, bytes) else (None, value if isinstance(value, str) else None)


def _read(files: Files, name: str, params: PixelParams, size_px: int) -> Any:
    data = files.read(name, 0, params.max_bytes + 1)
    if len(data) > params.max_bytes:
        raise Rejected("TOO_MANY_BYTES", f"{name}: more than {params.max_bytes} bytes")
    return pixels.clean(data, params, size_px)
