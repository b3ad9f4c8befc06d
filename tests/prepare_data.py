"""Small corpora of a user, and a folder in which stage `prepare` runs on them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.core.params import PathsParams
from tests import corpora
from tests.training_data import KEPT

WEBDATASET = corpora.WEBDATASET.model_dump()
FOLDER = corpora.FOLDER.model_dump() | {"directory": "."}


def picture(seed: int) -> bytes:
    """A PNG of smooth colours, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, seeds: range, num_bad: int = 0) -> None:
    """A tar of pictures with captions; the first ones are no pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, seed in enumerate(seeds):
            image = picture(seed) if number >= num_bad else b"none"
            for suffix, data in (("png", image), ("txt", f"picture {seed}".encode())):
                info = tarfile.TarInfo(f"{seed:05d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_params(root: Path, corpus: dict[str, Any], num_workers: int = 0, **changes: Any) -> None:
    """Params and paths of `prepare`; the corpus is in data/source, states are in runs."""
    prepare = {
        "corpus": corpus,
        "captions": "corpus",
        "image_size_px": 16,
        "num_samples_per_shard": 25,
        "max_seconds_per_sample": 20,
        "max_reject_fraction": 0.05,
        "num_examples": 4,
    }
    machine = {"threads": 1, "num_workers": num_workers, "attention": "auto", "compile": False} | KEPT
    paths = {name: f"data/{name}" for name in PathsParams.model_fields} | {"runs": "runs"}
    (root / "params.yaml").write_text(json.dumps({"machine": machine, "prepare": prepare | changes}))
    (root / "paths.yaml").write_text(json.dumps({"paths": paths}))


def outputs(root: Path) -> dict[str, bytes]:
    """All that `prepare` wrote, by path."""
    folders = ("images", "captions", "prepare_results")
    paths = [path for folder in folders for path in (root / "data" / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def kept(root: Path) -> dict[str, int]:
    """The parts of units that are kept in runs, each with the inode of its folder, which changes when it is made
    again."""
    return {path.name: path.stat().st_ino for path in (root / "runs/prepare").glob("*/unit-*")}
