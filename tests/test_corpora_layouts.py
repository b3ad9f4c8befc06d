"""The same 300 pictures in every layout and place: the bytes of the image shards are equal."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from ldm.corpora import remote
from tests import corpora, stage_scripts
from tests.prepare_data import picture, write_params
from tests.s3 import served

_FOLDERS = ("a", "a-b", "c.d", "e/f")
_NUMBERS = range(75)
_FOLDER = corpora.FOLDER.model_dump() | {"directory": "."}
_TARS = corpora.WEBDATASET.model_dump()
_PARQUET = {name: _FOLDER[name] for name in ("directory", "ignore", "pixels", "captions", "val_fraction", "seed")} | {
    "kind": "parquet",
    "image": "image",
}


@pytest.fixture(scope="module")
def pictures() -> dict[str, dict[str, tuple[bytes, str]]]:
    """Folder -> name -> picture and caption."""
    return {
        folder: {
            f"{number:03d}": (picture(100 * place + number), f"picture {number} of {folder}") for number in _NUMBERS
        }
        for place, folder in enumerate(_FOLDERS)
    }


@pytest.fixture(scope="module")
def sources(pictures: dict[str, dict[str, tuple[bytes, str]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each layout."""
    root = tmp_path_factory.mktemp("layouts")
    rows: list[dict[str, str]] = []
    for folder, samples in pictures.items():
        for layout in ("folder", "imagefolder"):
            (root / layout / folder).mkdir(parents=True)
        for layout in ("tars", "parquet"):
            (root / layout / folder).parent.mkdir(parents=True, exist_ok=True)
        for name, (data, caption) in samples.items():
            (root / "folder" / folder / f"{name}.png").write_bytes(data)
            (root / "folder" / folder / f"{name}.txt").write_text(caption)
            (root / "imagefolder" / folder / f"{name}.png").write_bytes(data)
            rows.append({"file_name": f"{folder}/{name}.png", "text": caption})
        with tarfile.open(root / "tars" / f"{folder}.tar", "w") as tar:
            for path in sorted((root / "folder" / folder).iterdir()):
                tar.add(path, path.name)
        images = [{"bytes": data, "path": f"{name}.png"} for name, (data, _) in samples.items()]
        table = pyarrow.table({"image": images, "text": [caption for _, caption in samples.values()]})
        parquet.write_table(table, root / "parquet" / f"{folder}.parquet")
    (root / "imagefolder/metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


@pytest.fixture(scope="module")
def bucket(sources: Path) -> Iterator[Any]:
    with served() as system:
        for layout in ("folder", "tars", "parquet"):
            system.put(f"{sources / layout}/", f"bucket/{layout}/", recursive=True)
        yield system


def _shards(root: Path, corpus: dict[str, Any]) -> dict[str, bytes]:
    """All bytes of the image shards that `prepare` makes in an empty folder."""
    write_params(root, corpus, num_workers=2, num_samples_per_shard=50)
    assert "300" in str(_accepted(stage_scripts.run("prepare")))
    folder = root / "data/images"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _accepted(summary: str) -> int:
    words = summary.replace(",", "").split()
    assert words[words.index("rejected") - 1] == "0", summary
    return int(words[words.index("train") - 1]) + int(words[words.index("val") - 1])


@pytest.fixture(scope="module")
def whole(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the plain folder becomes."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(sources / "folder", root / "data/source")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return _shards(root, _FOLDER)


@pytest.mark.parametrize(
    ("layout", "corpus"), [("imagefolder", _FOLDER), ("tars", _TARS), ("parquet", _PARQUET)], ids=lambda v: str(v)[:12]
)
def test_another_layout_makes_the_same_image_shards(
    whole: dict[str, bytes],
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    corpus: dict[str, Any],
) -> None:
    shutil.copytree(sources / layout, tmp_path / "data/source")
    monkeypatch.chdir(tmp_path)
    assert _shards(tmp_path, corpus) == whole


@pytest.mark.parametrize(
    ("layout", "corpus"), [("folder", _FOLDER), ("tars", _TARS), ("parquet", _PARQUET)], ids=lambda v: str(v)[:12]
)
def test_a_bucket_makes_the_same_image_shards(
    whole: dict[str, bytes],
    bucket: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    corpus: dict[str, Any],
) -> None:
    (tmp_path / "data/source").mkdir(parents=True)
    remote.write(f"s3://bucket/{layout}", tmp_path / "data/source/far.jsonl")
    monkeypatch.chdir(tmp_path)
    assert _shards(tmp_path, corpus | {"directory": "far.jsonl"}) == whole
