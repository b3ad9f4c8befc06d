import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet as pq

from ldm.core.errors import ConfigError, MachineError
from ldm.corpora import datasets
from ldm.corpora.pairs import Pair, Rejection
from ldm.corpora.user_params import DatasetsParams
from tests.corpora import CAPTIONS, PIXELS

PARAMS = DatasetsParams(
    kind="datasets",
    dataset="mine",
    revision=None,
    config=None,
    split="train",
    image="image",
    pixels=PIXELS,
    captions=CAPTIONS,
    val_fraction=0.3,
    seed=0,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and no network."""
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)


def _png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def _read(source: Path, is_captioned: bool = True, **changes: Any) -> list[Pair | Rejection]:
    units = datasets.units(PARAMS.model_copy(update=changes), 16, source, is_captioned)
    return [item for unit in pickle.loads(pickle.dumps(units)) for item in unit.items()]


def _parquet(source: Path, values: list[Any]) -> None:
    (source / "mine").mkdir()
    rows = [{"image": value, "caption": f"red {i}"} for i, value in enumerate(values)]
    pq.write_table(pyarrow.Table.from_pylist(rows), source / "mine" / "train-00000.parquet")


def _levels(found: list[Pair | Rejection]) -> list[int]:
    return [int(item.image().pixels[0, 0, 0]) for item in found if isinstance(item, Pair) and callable(item.image)]


def test_a_folder_of_parquet_files_is_a_dataset(tmp_path: Path) -> None:
    _parquet(tmp_path, [{"bytes": _png(i), "path": f"{i:03d}.png"} for i in range(4)])
    found = _read(tmp_path)
    assert _levels(found) == [0, 1, 2, 3] and found[0].source == {"corpus": "datasets", "table": "mine", "row": 0}
    assert [item.captions for item in found if isinstance(item, Pair)] == [[f"red {i}"] for i in range(4)]
    assert [item.captions for item in _read(tmp_path, False) if isinstance(item, Pair)] == [[""]] * 4


def test_an_imagefolder_is_a_dataset_whose_images_are_files(tmp_path: Path) -> None:
    (tmp_path / "mine/train").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"mine/train/{i}.png").write_bytes(_png(i))
    rows = "".join(f"{i}.png,red {i}\n" for i in range(3))
    (tmp_path / "mine/train/metadata.csv").write_text(f"file_name,text\n{rows}")
    found = _read(tmp_path)
    assert _levels(found) == [0, 1, 2]
    assert [item.captions for item in found if isinstance(item, Pair)] == [["red 0"], ["red 1"], ["red 2"]]


def test_a_file_outside_the_dataset_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(_png(0))
    _parquet(tmp_path, [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": _png(7), "path": "a.png"}])
    first, second = _read(tmp_path)
    assert isinstance(first, Rejection) and first.reason == "MISSING_IMAGE" and _levels([second]) == [7]


def test_the_hash_of_the_unit_is_that_of_the_files_and_names(tmp_path: Path) -> None:
    _parquet(tmp_path, [_png(0)])

    def sha256(**changes: Any) -> str:
        return datasets.units(PARAMS.model_copy(update=changes), 16, tmp_path)[0].sha256

    one = sha256()
    assert one == sha256() != sha256(split="test")
    (tmp_path / "mine/README.md").write_text("x")
    assert one != sha256()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": "owner/name"}, ConfigError, "no such folder, and no revision"),
        ({"dataset": "owner/name", "revision": "a" * 40}, MachineError, "owner/name: "),
        ({"split": "test"}, ConfigError, 'Unknown split "test"'),
        ({"config": "large"}, ConfigError, "BuilderConfig 'large' not found"),
        ({"image": "picture"}, ConfigError, "picture: mine has columns image, caption"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, changes: dict[str, Any], error: Any, message: str) -> None:
    _parquet(tmp_path, [_png(0)])
    with pytest.raises(error, match=f"{message}.*\nfix: "):
        _read(tmp_path, **changes)


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _parquet(tmp_path, [_png(0)])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match=r"pip install 'ldm\[datasets\]'"):
        _read(tmp_path)


def test_a_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    captions = pyarrow.array([b"red", b"\xff\xfe", b"blue"]).view(pyarrow.string())
    table = pyarrow.table({"image": [_png(1), _png(2), _png(3)], "caption": captions})
    pq.write_table(table, tmp_path / "mine/train-00000.parquet")
    found = _read(tmp_path)
    assert _levels(found) == [1, 3]
    assert [(item.reason, item.source["row"]) for item in found if isinstance(item, Rejection)] == [("DAMAGED", 1)]


def test_a_dangling_link_in_the_folder_is_no_traceback(tmp_path: Path) -> None:
    _parquet(tmp_path, [_png(1)])
    (tmp_path / "mine/gone.txt").symlink_to(tmp_path / "nowhere")
    assert _levels(_read(tmp_path)) == [1]
