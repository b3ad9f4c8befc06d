"""The stage in a folder of its own, with a params file and nothing else."""

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML

from ldm.core.errors import ConfigError, IntegrityError
from ldm.core.params import PathsParams
from ldm.core.shards import Shards
from tests import corpora, stage_scripts
from tests.training_data import KEPT

SCRIPT = Path(__file__).parents[1] / "stages" / "prepare.py"
SHAPES = {
    "kind": "shapes",
    "num_train": 40,
    "num_val": 12,
    "num_reworded": 5,
    "num_unseen": 6,
    "num_held_out": 12,
    "object_count_weights": [0.3, 0.7],
    "relation_caption_fraction": 0.5,
    "sentence_forms": "varied",
    "num_captions_per_image": 2,
    "seed": 0,
}
FOLDER = corpora.FOLDER.model_dump()
TARS = corpora.WEBDATASET.model_dump() | {"directory": "mine"}


def _params(root: Path, corpus: dict, num_workers: int = 0, **changes) -> None:
    prepare = {
        "corpus": corpus,
        "captions": "corpus",
        "image_size_px": 32,
        "num_samples_per_shard": 25,
        "max_seconds_per_sample": 20,
        "max_reject_fraction": 0.05,
        "num_examples": 4,
    }
    machine = {"threads": None, "num_workers": num_workers, "attention": "auto", "compile": False} | KEPT
    paths = {name: f"data/{name}" for name in PathsParams.model_fields} | {"runs": "runs"}
    stream = io.BytesIO()
    YAML().dump({"machine": machine, "prepare": prepare | changes}, stream)
    (root / "params.yaml").write_bytes(stream.getvalue())
    (root / "paths.yaml").write_text(json.dumps({"paths": paths}))


def _main() -> str:
    """The stage in this process, in the current folder."""
    return stage_scripts.run("prepare")


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()}


def test_shapes_twice_with_and_without_workers_is_byte_identical(tmp_path, monkeypatch):
    outputs = []
    for num_workers in (0, 2):
        root = tmp_path / str(num_workers)
        root.mkdir()
        _params(root, SHAPES, num_workers)
        monkeypatch.chdir(root)
        summary = _main()
        counts = "prepare: 40 train, 12 val, 5 reworded, 6 unseen, 12 held_out, 0 rejected"
        assert re.fullmatch(rf"{counts}, \d+ distinct captions to train on -> .*", summary)
        outputs.append(_bytes(root))
    assert outputs[0] == outputs[1]
    assert len(Shards(root / "data/images/held_out")) == 12
    results = {path.name for path in (root / "data/prepare_results").iterdir()}
    alike = ("near_duplicates", "near_duplicates_across_splits")
    tables = {f"{name}.csv" for name in ("sides", "aspects", "caption_words", "rejected", *alike)}
    assert results == {"rejected.jsonl", "report.json", "examples.png", *tables}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    mine = tmp_path / "data" / "source" / "mine"
    mine.mkdir(parents=True)
    for i in range(20):
        Image.new("RGB", (40, 40), (10 * i, 0, 0)).save(mine / f"{i}.png")
        (mine / f"{i}.txt").write_text(f"red {i}\n")
    _params(tmp_path, FOLDER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_too_many_rejects_end_with_code_3_and_keep_only_the_reasons(folder):
    (folder / "data/source/mine/3.png").write_bytes(b"<html>")
    (folder / "data/source/mine/7.txt").unlink()
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "Traceback" not in done.stderr and done.stdout == ""
    assert "\nprepare: 2 of 20 samples rejected: " in f"\n{done.stderr}"
    assert "\nfix: see data/prepare_results/rejected.jsonl" in done.stderr
    assert len(list((folder / "runs/prepare").glob("*/unit-*"))) == 1, "what was done is kept"
    rows = [json.loads(line) for line in (folder / "data/prepare_results/rejected.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rows} == {"NOT_IMAGE", "MISSING_CAPTION"}
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["prepare_results", "source"]
    _params(folder, FOLDER, max_reject_fraction=0.1)
    assert "2 rejected" in _main()
    assert sum(len(Shards(folder / "data/images" / split)) for split in ("train", "val")) == 18


def test_a_second_prepare_is_refused_until_the_first_is_killed_and_then_its_workers_are_gone(tmp_path):
    _params(tmp_path, SHAPES | {"num_train": 1_000_000}, num_workers=2)
    first = subprocess.Popen([sys.executable, SCRIPT], cwd=tmp_path, stderr=subprocess.DEVNULL)
    kept = tmp_path / "runs/prepare"
    try:
        while not list(kept.glob("*/unit-*")):
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert second.returncode == 5 and len(second.stderr.splitlines()) == 2
        assert re.match(rf"runs/prepare/\w+/lock: a run is already going on here \(pid {first.pid} on ", second.stderr)
        assert list(kept.glob("*/unit-*")), "the first one keeps what it has made"
        # A worker makes so many items and is replaced: for a moment there may be none.
        while not (workers := psutil.Process(first.pid).children()):
            time.sleep(0.01)
        assert len(workers) <= 2
    finally:
        first.kill()
        first.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    _params(tmp_path, SHAPES)
    third = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["captions", "images", "prepare_results"]


def test_a_missing_folder_is_refused(folder):
    _params(folder, FOLDER | {"directory": "other"})
    with pytest.raises(ConfigError, match="data/source/other: no such folder"):
        _main()
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["source"]


def test_a_damaged_tar_is_refused(folder):
    (folder / "data/source/mine/0.tar").write_bytes(b"\0" * 100)
    _params(folder, TARS)
    with pytest.raises(IntegrityError, match=r"mine: 1 of 1 tar damaged: 0\.tar"):
        _main()
