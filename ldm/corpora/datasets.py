"""A dataset that Hugging Face's package `datasets` opens: a row of it is a sample."""

from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from ldm.core.errors import ConfigError, MachineError
from ldm.corpora.files import Files
from ldm.corpora.pairs import Pair, Rejection, Unit
from ldm.corpora.rows import Row, Table, rows_of
from ldm.corpora.user_params import DatasetsParams

_WHERE = "prepare.corpus.dataset"
_ROWS_AT_ONCE = 64


def units(params: DatasetsParams, size_px: int, source: Path, is_captioned: bool = True) -> list[Unit]:
    """One unit of all rows, in the order of the dataset. A folder below `source` comes before a name on the hub, of
    which DVC sees nothing: its commit in the params says what it holds.

    Reasons of rejections, besides those of pixels and captions: MISSING_IMAGE (a row without one), DAMAGED (one that
    cannot be read, such as a text that is not UTF-8).

    Raises:
        ConfigError: there is no such configuration, split or column, or no commit of a dataset on the hub.
        MachineError: the package is not there, or the dataset cannot be fetched.
    """
    is_folder = (source / params.dataset).exists()
    if not is_folder and params.revision is None:
        fix = f"give prepare.corpus.revision a commit of it, or put a folder at {source / params.dataset}"
        raise ConfigError(f"{_WHERE}: {params.dataset}", "no such folder, and no revision", "one of them", fix)
    digest = sha256(f"{params.dataset} {params.config} {params.revision} {params.split}".encode())
    if is_folder:
        files = Files.below(source, params.dataset)
        digest.update(files.sha256_of(file.name for file in files.list()).encode())
    make = partial(_items, params, size_px, source if is_folder else None, is_captioned)
    return [Unit(params.dataset, digest.hexdigest(), make)]


def _items(params: DatasetsParams, size_px: int, source: Path | None, is_captioned: bool) -> Iterator[Pair | Rejection]:
    opened = _opened(params, source)
    if params.image not in opened.column_names:
        found = f"{params.dataset} has columns {', '.join(opened.column_names)}"
        raise ConfigError(f"prepare.corpus.image: {params.image}", found, "one of them", "name it")
    table = Table(params.dataset.rpartition("/")[2], params, size_px, is_captioned, None)
    columns = [column for column in table.columns() if column in opened.column_names]
    return table.pairs(_rows(opened.select_columns(columns), params, source))


def _opened(params: DatasetsParams, source: Path | None) -> Any:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MachineError(_WHERE, str(error), "the package datasets", "pip install 'ldm[datasets]'") from None
    name = params.dataset if source is None else str(source / params.dataset)
    try:
        return datasets.load_dataset(name, params.config, revision=params.revision, split=params.split)
    except ValueError as error:
        fix = "name one that it has, in prepare.corpus.config or prepare.corpus.split"
        raise ConfigError(f"{_WHERE}: {name}", _line(error), "a configuration and a split of it", fix) from None
    except (OSError, RuntimeError, DatasetsError) as error:
        fix = "connect this machine, or put the dataset's files below paths.source"
        raise MachineError(f"{_WHERE}: {name}", _line(error), "a dataset that can be opened", fix) from None


def _rows(opened: Any, params: DatasetsParams, source: Path | None) -> Iterator[Row | str]:
    """Rows with images as bytes, which our own code decodes, or what is wrong with one."""
    from datasets import Image, config

    column = params.image
    if isinstance(opened.features[column], Image):
        opened = opened.cast_column(column, Image(decode=False))
    root = (Path(config.HF_CACHE_HOME) if source is None else source / params.dataset).resolve()
    for row in chain.from_iterable(map(rows_of, opened.with_format("arrow").iter(_ROWS_AT_ONCE))):
        value = None if isinstance(row, str) else row[column]
        if not isinstance(row, str) and isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            row = {**row, column: _file(Path(value["path"]).resolve(), root, params.pixels.max_bytes)}
        yield row


def _file(path: Path, root: Path, max_bytes: int) -> dict[str, Any]:
    """The bytes of a file and its path below `root`; none of a file elsewhere, which a table may name too."""
    if not path.is_relative_to(root) or not path.is_file():
        return {"bytes": None, "path": str(path)}
    with path.open("rb") as file:
        return {"bytes": file.read(max_bytes + 1), "path": str(path.relative_to(root))}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
