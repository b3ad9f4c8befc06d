import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet as pq

from ldm.core.errors import ConfigError, IntegrityError
from ldm.corpora import folder, made, parquet
from ldm.corpora.files import Files
from ldm.corpora.pairs import Pair, Rejected, Rejection
from ldm.corpora.user_params import ParquetParams
from tests.corpora import CAPTIONS, FOLDER, PIXELS

PARAMS = ParquetParams(
    kind="parquet",
    directory="mine",
    ignore=["metadata.*"],
    image="image",
    pixels=PIXELS,
    captions=CAPTIONS,
    val_fraction=0.3,
    seed=0,
)


def _png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def _write(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def _read(root: Path, is_captioned: bool = True, **changes: Any) -> list[Pair | Rejection]:
    units = parquet.units(PARAMS.model_copy(update=changes), 16, Files(root), is_captioned)
    return [item for unit in pickle.loads(pickle.dumps(units)) for item in unit.items()]


def _level(item: Pair | Rejection) -> int:
    assert isinstance(item, Pair) and callable(item.image), item
    return int(item.image().pixels[0, 0, 0])


def test_names_that_the_params_ignore_are_not_read(mine: Path) -> None:
    """Such as a table of something else."""
    _write(mine / "train.parquet", [{"image": _png(7), "text": "seven"}])
    _write(mine / "metadata.parquet", [{"x": 1}])
    assert [_level(item) for item in _read(mine)] == [7]
    with pytest.raises(ConfigError, match=r"metadata\.parquet has columns x"):
        _read(mine, ignore=[])


def test_bytes_structures_and_paths_are_images(mine: Path) -> None:
    (mine / "sub").mkdir()
    (mine / "sub/p.png").write_bytes(_png(3))
    _write(mine / "a.parquet", [{"image": _png(1), "caption": "bytes", "unused": 1}])
    _write(mine / "b.parquet", [{"image": {"bytes": _png(2), "path": "000.png"}, "text": ["one", "two"]}])
    _write(mine / "sub/c.PARQUET", [{"image": "p.png", "caption": "a path"}])
    found = _read(mine)
    assert [_level(item) for item in found] == [1, 2, 3]
    assert [item.captions for item in found if isinstance(item, Pair)] == [["bytes"], ["one", "two"], ["a path"]]
    assert [item.group for item in found if isinstance(item, Pair)] == ["a", "b", "sub"]
    assert found[0].source == {"corpus": "parquet", "table": "a", "row": 0}
    assert [item.captions for item in _read(mine, is_captioned=False) if isinstance(item, Pair)] == [[""]] * 3


def test_the_same_pictures_are_the_same_samples_as_in_folders(mine: Path) -> None:
    rows = [{"image": {"bytes": _png(i), "path": f"{i:03d}.png"}, "caption": f"red {i}"} for i in range(5)]
    for name in ("a", "b"):
        _write(mine / f"{name}.parquet", rows)
        (mine.parent / "files" / name).mkdir(parents=True)
        for i, row in enumerate(rows):
            path = mine.parent / "files" / name / f"{i:03d}.png"
            path.write_bytes(row["image"]["bytes"])
            path.with_suffix(".txt").write_text(row["caption"])
    units = folder.units(FOLDER, 16, Files(mine.parent / "files"))
    there = [item for unit in units for item in unit.items()]
    here = _read(mine)
    assert len(here) == 10
    for one, other in zip(here, there, strict=True):
        assert isinstance(one, Pair) and isinstance(other, Pair) and callable(one.image) and callable(other.image)
        assert (one.key, one.group, one.split, one.captions) == (other.key, other.group, other.split, other.captions)
        assert np.array_equal(one.image().pixels, other.image().pixels)


def test_rows_that_share_a_path_are_all_there(mine: Path) -> None:
    rows = [{"image": {"bytes": _png(i), "path": "image.png"}, "caption": f"red {i}"} for i in range(3)]
    _write(mine / "a.parquet", rows)
    found = _read(mine)
    assert len({item.key for item in found}) == 3 and [_level(item) for item in found] == [0, 1, 2]


def test_rows_that_cannot_be_used_are_rejected(mine: Path) -> None:
    rows = [
        {"image": {"bytes": None, "path": None}, "caption": "a"},
        {"image": None, "caption": "a"},
        {"image": {"bytes": b"x" * 100_001, "path": None}, "caption": "a"},
        {"image": {"bytes": None, "path": "../../etc/passwd"}, "caption": "a"},
        {"image": {"bytes": None, "path": "/etc/passwd"}, "caption": "a"},
        {"image": {"bytes": _png(0), "path": "no caption"}, "caption": None},
    ]
    _write(mine / "a.parquet", rows)
    found = _read(mine)
    assert [item.reason for item in found if isinstance(item, Rejection)] == [
        *("MISSING_IMAGE", "MISSING_IMAGE", "TOO_MANY_BYTES", "UNSAFE_PATH", "UNSAFE_PATH", "MISSING_CAPTION")
    ]


@pytest.mark.parametrize(("path", "reason"), [("gone.png", "UNREADABLE"), ("large.png", "TOO_MANY_BYTES")])
def test_files_behind_paths_are_checked_when_they_are_read(mine: Path, path: str, reason: str) -> None:
    (mine / "large.png").write_bytes(b"x" * 100_001)
    _write(mine / "a.parquet", [{"image": path, "caption": "a"}])
    (item,) = _read(mine)
    with pytest.raises(Rejected, match=reason):
        _level(item)


def test_a_value_that_python_cannot_take_costs_its_row(mine: Path) -> None:
    """A text that is not UTF-8, and a date beyond the years of Python; pyarrow writes both."""
    for name, column in (
        ("text", pyarrow.array([b"zero", b"caf\xe9", b"two"]).view(pyarrow.string())),
        ("date", pyarrow.array([0, 2**62, 0]).cast(pyarrow.timestamp("us"))),
    ):
        captions = CAPTIONS.model_copy(update={"sources": [name]})
        table = pyarrow.table({"image": [_png(level) for level in range(3)], name: column})
        pq.write_table(table, mine / "train.parquet")
        found = _read(mine, is_captioned=name == "text", captions=captions)
        if name == "text":
            assert [item.reason if isinstance(item, Rejection) else _level(item) for item in found] == [0, "DAMAGED", 2]
        else:
            assert [_level(item) for item in found] == [0, 1, 2], "a column that no param names is not read"
        found = _read(mine, captions=captions)
        assert isinstance(found[1], Rejection) and found[1].reason == "DAMAGED"


@pytest.mark.parametrize("image", [{"bytes": "iVBORw0KGgo=", "path": None}, {"bytes": None, "path": 7}, "7\0.png"])
def test_what_is_no_image_at_all_is_rejected(mine: Path, image: object) -> None:
    _write(mine / "train.parquet", [{"image": image, "text": "seven"}])
    (item,) = _read(mine)
    if isinstance(item, Pair):
        assert callable(item.image)
        with pytest.raises(Rejected):
            item.image()
    else:
        assert item.reason == "MISSING_IMAGE"


def test_a_name_of_a_file_that_is_not_utf8_is_written_with_escapes(mine: Path) -> None:
    _write(mine / "x.parquet", [{"image": _png(7), "text": "seven"}])
    os.rename(mine / "x.parquet", os.fsencode(mine) + b"/caf\xe9.parquet")
    (item,) = _read(mine)
    assert made.to_json(item.source) and item.source["table"] == "caf\\udce9"


def test_damage_costs_the_rows_of_its_row_group(mine: Path) -> None:
    rows = [{"image": _png(i), "caption": f"red {i}"} for i in range(9)]
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    _write(mine / "a.parquet", rows, row_group_size=3, write_page_checksum=True, **plain)
    data = bytearray((mine / "a.parquet").read_bytes())
    data[data.index(_png(4)) + 20] ^= 1
    (mine / "a.parquet").write_bytes(data)
    found = _read(mine)
    assert [item.reason if isinstance(item, Rejection) else _level(item) for item in found] == [
        *(0, 1, 2, "DAMAGED", "DAMAGED", "DAMAGED", 6, 7, 8)
    ]


def test_all_damaged_files_are_named_before_any_is_read(mine: Path) -> None:
    for name in ("a", "b", "c", "d"):
        _write(mine / f"{name}.parquet", [{"image": _png(0), "caption": "a"}])
    for name in ("b", "d"):
        path = mine / f"{name}.parquet"
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(IntegrityError) as caught:
        _read(mine)
    assert str(caught.value).count("\nfix: fetch it again") == 2
    assert "b.parquet" in str(caught.value) and "d.parquet" in str(caught.value)


def test_a_column_that_is_not_there_is_refused(mine: Path) -> None:
    _write(mine / "a.parquet", [{"picture": _png(0), "caption": "a"}])
    with pytest.raises(ConfigError, match=r"prepare\.corpus\.image: image: a\.parquet has columns picture, caption"):
        _read(mine)
    assert len(_read(mine, image="picture")) == 1


def test_a_folder_without_parquet_files_is_refused(mine: Path) -> None:
    (mine / "._a.parquet").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"mine: no \*\.parquet in it"):
        _read(mine)


def test_paths_match_files_as_windows_and_a_mac_spell_them(mine: Path) -> None:
    names = {"caf\u00e9.png": "cafe\u0301.png", "a\\x.png": "a/x.png", "\u00e9.png": "\u00e9.png"}
    (mine / "a").mkdir()
    for level, name in enumerate(names.values(), 1):
        (mine / name).write_bytes(_png(level))
    (mine / "e\u0301.png").write_bytes(_png(9))  # the other spelling of a name is another file
    _write(mine / "t.parquet", [{"image": name, "caption": "a"} for name in names])
    assert [_level(item) for item in _read(mine)] == [1, 2, 3]


def test_files_beside_tables_are_hashed_once(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        _write(mine / f"{number}.parquet", [{"image": f"{number}.png", "caption": "a"}])
        (mine / f"{number}.png").write_bytes(_png(number))
    hashed: list[str] = []
    real = Files.sha256
    monkeypatch.setattr(Files, "sha256", lambda files, name: hashed.append(name) or real(files, name))
    before = {unit.name: unit.sha256 for unit in parquet.units(PARAMS, 16, Files(mine))}
    assert len(hashed) == len(set(hashed)) == 10 and len(set(before.values())) == 5
    (mine / "3.png").write_bytes(_png(99))
    after = {unit.name: unit.sha256 for unit in parquet.units(PARAMS, 16, Files(mine))}
    assert all(before[name] != after[name] for name in before), "rows of any table may name it"
