from pathlib import Path
from typing import Any

import pytest

from ldm.corpora.files import Files
from ldm.corpora.pairs import key_of
from ldm.corpora.rows import Table
from ldm.corpora.user_params import ParquetParams
from tests.corpora import CAPTIONS, PIXELS


def _table(is_captioned: bool = True, folder: str = "", **changes: Any) -> Table:
    captions = CAPTIONS.model_copy(update=changes)
    params = ParquetParams(
        kind="parquet",
        directory=".",
        ignore=[],
        image="image",
        pixels=PIXELS,
        captions=captions,
        val_fraction=0.3,
        seed=0,
    )
    return Table("sub/train", params, 16, is_captioned, Files(Path()), folder)


def test_only_columns_that_are_used_are_read() -> None:
    sources = [".txt", "caption", "meta.en", "meta.de"]
    assert _table(sources=sources).columns() == ["image", "caption", "meta.en", "meta.de", "meta"]
    assert _table(False, sources=sources).columns() == ["image"]


@pytest.mark.parametrize(
    ("image", "sample", "group"),
    [
        ({"bytes": b"x", "path": "000.jpg"}, "sub/train/000", "sub"),
        ({"bytes": b"x", "path": "./a/000.v2.jpg"}, "sub/train/a/000.v2", "sub"),
        ({"bytes": b"x", "path": "/tmp/000.jpg"}, "sub/train/tmp/000", "sub"),
        ({"bytes": b"x", "path": "../../000.jpg"}, "sub/train/000", "sub"),
        ({"bytes": None, "path": "000.jpg"}, "sub/000", "sub"),
        ("a\\000.jpg", "sub/a/000", "sub"),
        ("../000.jpg", "000", ""),
        ({"bytes": b"x", "path": "cafe\u0301.jpg"}, "sub/train/caf\u00e9", "sub"),
        (b"x", "sub/train/000000007", "sub"),
    ],
)
def test_samples_are_called_by_their_paths_or_else_numbers(image: Any, sample: str, group: str) -> None:
    (pair,) = _table(folder="sub").pairs([{"image": image, "caption": "a"}], 7)
    assert pair.key == key_of(sample)
    assert getattr(pair, "group", None) == group and pair.source == {
        "corpus": "parquet",
        "table": "sub/train",
        "row": 7,
    }
