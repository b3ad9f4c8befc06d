import hashlib
import io
import tarfile
from pathlib import Path
from typing import get_args

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from ldm.corpora import kinds, pairs
from ldm.corpora.base_params import CorpusBase
from ldm.corpora.pairs import Litter, Pair
from ldm.corpora.params import CorpusParams, PrepareParams, ShapesParams, UserParams
from ldm.corpora.user_params import DatasetsParams, FolderParams, ParquetParams
from tests.corpora import CAPTIONS, FOLDER, PIXELS, WEBDATASET, shapes_params


def test_split_depends_on_seed_and_key_alone_and_has_the_wanted_share():
    keys = [f"image-{i}" for i in range(4000)]
    splits = {key: pairs.split_of(key, 0.1, 0) for key in keys}
    share = sum(split == "val" for split in splits.values()) / len(keys)
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / len(keys)) ** 0.5
    assert all(pairs.split_of(key, 0.1, 0) == split for key, split in reversed(splits.items()))
    assert any(pairs.split_of(key, 0.1, 1) != split for key, split in splits.items())


def test_a_larger_validation_share_only_moves_samples_into_it():
    for key in map(str, range(500)):
        assert not (pairs.split_of(key, 0.1, 0) == "val" and pairs.split_of(key, 0.2, 0) == "train")


def test_fit_names_are_kept_as_keys():
    for name in ("a", "1F34E-FE0F", "train_00000001", "x" * 80):
        assert pairs.key_of(name) == name


def test_other_names_become_different_fit_keys():
    names = ["a b", "a  b", "a.b", "a/b", "ä", "ö", "", "x" * 81, "x" * 82, "../../etc", "\udcff", "a\nb"]
    keys = [pairs.key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    for key in keys:
        assert 0 < len(key) <= 80 and set(key) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
        )


def test_keys_of_a_hundred_million_names_differ():
    """By their hashes: 64 bits let two of 1e8 be equal once in 3,700 corpora."""
    assert pairs.key_of("a/b").removeprefix("a-b-") == hashlib.blake2b(b"a/b", digest_size=8).hexdigest()


def test_dispatch_reads_a_folder_below_the_source(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "stray.txt").write_text("no image")
    params = PrepareParams(
        corpus=FOLDER,
        captions="corpus",
        image_size_px=16,
        num_samples_per_shard=4,
        max_seconds_per_sample=20,
        max_reject_fraction=0,
        num_examples=1,
    )
    assert [item.key for item in kinds.pairs(params, Path(tmp_path))] == ["stray"]


def uncaptioned(corpus: UserParams | ShapesParams, source: Path) -> list[Pair]:
    params = PrepareParams(
        corpus=corpus,
        captions="none",
        image_size_px=32,
        num_samples_per_shard=4,
        max_seconds_per_sample=20,
        max_reject_fraction=0,
        num_examples=1,
    )
    found = [item for item in kinds.pairs(params, source) if not isinstance(item, Litter)]
    assert all(isinstance(item, Pair) for item in found)
    return [item for item in found if isinstance(item, Pair)]


def test_without_captions_every_corpus_has_empty_ones_that_claim_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's images then need no text, and a text that cannot be read spoils nothing."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    png = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(png, "PNG")
    (tmp_path / "a.png").write_bytes(png.getvalue())
    (tmp_path / "b.png").write_bytes(png.getvalue())
    (tmp_path / "table").mkdir()
    parquet.write_table(pyarrow.table({"image": [png.getvalue()] * 3}), tmp_path / "table/train.parquet")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    shared = {"pixels": PIXELS, "captions": CAPTIONS, "val_fraction": 0.1, "seed": 0}
    user, rows = shared | {"directory": ".", "ignore": []}, {"image": "image"}
    hub = {"dataset": "table", "revision": None, "config": None, "split": "train"}
    tars = uncaptioned(WEBDATASET, tmp_path)
    (tmp_path / "mine.tar").unlink()
    pairs_of = {
        "folder": uncaptioned(FolderParams(kind="folder", **user), tmp_path),
        "webdataset": tars,
        "parquet": uncaptioned(ParquetParams(kind="parquet", **rows, **user), tmp_path),
        "datasets": uncaptioned(DatasetsParams(kind="datasets", **rows, **hub, **shared), tmp_path),
        "shapes": uncaptioned(shapes_params(2, 1, 1), tmp_path),
    }
    expected = {"folder": 2, "webdataset": 1, "parquet": 3, "datasets": 3, "shapes": 6}
    assert {name: len(found) for name, found in pairs_of.items()} == expected
    assert {(*pair.captions, *pair.claims) for found in pairs_of.values() for pair in found} == {("", None)}


def test_every_corpus_answers_what_check_asks() -> None:
    assert all(issubclass(model, CorpusBase) for model in get_args(CorpusParams))


@pytest.mark.parametrize("directory", ["/etc", "..", "a/../..", "", ".hidden", "a//b"])
def test_a_corpus_outside_the_source_is_no_legal_value(directory):
    with pytest.raises(ValueError, match="directory"):
        FolderParams.model_validate(FOLDER.model_dump() | {"directory": directory})


@pytest.mark.parametrize("weights", [[], [0, 0.0], [-1, 2], [1, 1, 1, 1]])
def test_weights_that_draw_no_scene_are_no_legal_values(weights):
    with pytest.raises(ValueError, match="object_count_weights"):
        ShapesParams(
            kind="shapes",
            num_train=1,
            num_val=1,
            num_reworded=1,
            num_unseen=1,
            num_held_out=1,
            object_count_weights=weights,
            relation_caption_fraction=0.5,
            sentence_forms="varied",
            num_captions_per_image=1,
            seed=0,
        )
