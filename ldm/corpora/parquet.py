"""A user's parquet files: a row is a sample. Every file is looked over before any is read.

Damage costs the rows of its row group: pages are checked by their checksums, where they have them.
"""

import hashlib
import io
import unicodedata
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow
from pyarrow import parquet

from ldm.core import workspace
from ldm.core.errors import ConfigError, IntegrityError
from ldm.corpora.files import File, Files, is_ignored
from ldm.corpora.pairs import Pair, Rejected, Rejection, Unit
from ldm.corpora.rows import Table, line, rows_of
from ldm.corpora.user_params import ParquetParams

_SUFFIX = ".parquet"
_ROWS_AT_ONCE = 64
_ERRORS = (pyarrow.ArrowException, OSError, ValueError, Rejected)


def units(params: ParquetParams, size_px: int, files: Files, is_captioned: bool = True) -> list[Unit]:
    """One unit per file, ordered by name; rows in the order of the file.

    Reasons of rejections, besides those of pixels and captions: MISSING_IMAGE (no bytes and no path), UNSAFE_PATH (one
    that leads out of the corpus), DAMAGED (a row of a row group that cannot be read).

    Raises:
        ConfigError: there is no parquet file in the folder, or one has no column of images.
        IntegrityError: files are damaged or cut short; names all of them.
    """
    listed = files.list()
    all_tables = (file for file in listed if file.name.lower().endswith(_SUFFIX))
    found = [file for file in all_tables if not is_ignored(file.name, params.ignore)]
    if not found:
        where = f"prepare.corpus.directory: {files.root}"
        fix = workspace.left_behind(files.root) or "put parquet files there, or name another folder"
        raise ConfigError(where, "no *.parquet in it", "a folder of parquet files", fix)
    _look_over(found, params, files)
    # The order of all samples by name: a/1 stands behind a-b/1, as "/" does behind "-".
    found.sort(key=lambda file: f"{_stem(file)}/")
    spelled = {unicodedata.normalize("NFC", file.name): file.name for file in listed}
    spelled = {name: own for name, own in spelled.items() if name not in {file.name for file in listed}}
    make = partial(_items, params=params, size_px=size_px, files=files, spelled=spelled, is_captioned=is_captioned)
    # Rows may name images that lie beside.
    tables = {file.name for file in found}
    beside = files.sha256_of(file.name for file in listed if file.name not in tables)
    return [Unit(file.name, _sha256(files, file, beside), partial(make, file)) for file in found]


def _sha256(files: Files, file: File, beside: str) -> str:
    return hashlib.sha256(f"{files.sha256_of([file.name])} {beside}".encode()).hexdigest()


def _items(
    file: File, params: ParquetParams, size_px: int, files: Files, spelled: Mapping[str, str], is_captioned: bool
) -> Iterator[Pair | Rejection]:
    table = Table(_stem(file), params, size_px, is_captioned, files, file.name.rpartition("/")[0], spelled)
    opened = _open(file, files)
    columns = [column for column in table.columns() if column in opened.schema_arrow.names]
    done = 0
    for group in range(opened.num_row_groups):
        end = done + opened.metadata.row_group(group).num_rows
        try:
            for batch in opened.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
                yield from table.pairs(rows_of(batch), done)
                done += batch.num_rows
        except _ERRORS as error:
            yield from (table.rejection(number, "DAMAGED", line(error)) for number in range(done, end))
        done = end


def _look_over(found: list[File], params: ParquetParams, files: Files) -> None:
    damaged: list[IntegrityError] = []
    for file in found:
        try:
            columns = _open(file, files).schema_arrow.names
        except _ERRORS as error:
            fix = "fetch it again, or move it out of the folder"
            damaged.append(IntegrityError(str(files.root / file.name), line(error), "a whole parquet file", fix))
            continue
        if params.image not in columns:
            found_columns, where = ", ".join(columns), f"prepare.corpus.image: {params.image}"
            raise ConfigError(where, f"{file.name} has columns {found_columns}", "one of them", "name it")
    if damaged:
        raise IntegrityError.many(damaged)


def _open(file: File, files: Files) -> Any:
    return parquet.ParquetFile(io.BufferedReader(_Reader(file, files)), page_checksum_verification=True)


class _Reader(io.RawIOBase):
    """A file of the corpus, wherever it is, as pyarrow reads files."""

    def __init__(self, file: File, files: Files) -> None:
        self._file, self._files, self._place = file, files, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        size = min(len(buffer), max(0, self._file.size - self._place))
        data = self._files.read(self._file.name, self._place, size) if size else b""
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _stem(file: File) -> str:
    return file.name[: -len(_SUFFIX)]
