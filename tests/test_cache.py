import itertools
import json

import numpy as np
import pytest
import torch

from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.core import artifact
from ldm.core.errors import IntegrityError, NumericsError
from ldm.precompute.cache import Cache, CacheWriter
from ldm.text.embedding.embeddings import CAPTIONS, NULL, TextEmbeddings
from ldm.text.embedding.embeddings import KIND as EMBEDDINGS

ROWS = torch.arange(7 * 4, dtype=torch.float16).reshape(7, 2, 2)
NAMES = np.arange(7, dtype=np.int64)


def write(directory, kind=LATENTS, splits=(0, 3, 5, 7), reverse=False):
    writer = CacheWriter(directory, kind)
    bounds = list(enumerate(itertools.pairwise(splits)))
    for number, (start, end) in reversed(bounds) if reverse else bounds:
        writer.write_shard(number, {"mean": ROWS[start:end], "number": torch.from_numpy(NAMES[start:end]).float()})
    return writer.finish(len(bounds), {"precision": "fp32"}, {"autoencoder": "aa"}, {"factor": 8})


def test_gather_keeps_order_repeats_and_dtype(tmp_path):
    write(tmp_path)
    cache = Cache(tmp_path, LATENTS)
    rows = np.array([6, 0, 3, 3, 2, 5])
    found = cache.gather("mean", rows)
    assert found.dtype == torch.float16
    assert torch.equal(found, ROWS[torch.from_numpy(rows)])
    assert cache.gather("number", rows).tolist() == rows.tolist()
    assert cache.gather("mean", rows[:0]).shape == (0, 2, 2)
    assert len(cache) == 7
    assert cache.passport.facts == {"factor": 8}


@pytest.mark.parametrize("row", [-1, 7])
def test_rows_outside_are_a_bug(tmp_path, row):
    write(tmp_path)
    with pytest.raises(AssertionError, match="rows outside"):
        Cache(tmp_path, LATENTS).gather("mean", np.array([row]))


def test_bytes_do_not_depend_on_the_order_of_writing(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", reverse=True)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 5
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_other_kind_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(IntegrityError, match=r"kind 'latents'.*expected kind 'embeddings'"):
        TextEmbeddings(tmp_path)


def test_corrupt_shard_is_refused_with_both_hashes(tmp_path):
    write(tmp_path)
    path = tmp_path / "00001.safetensors"
    right = artifact.sha256_file(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    cache = Cache(tmp_path, LATENTS)
    for read in (lambda: cache.gather("mean", NAMES), cache.verify):
        with pytest.raises(IntegrityError) as error:
            read()
        assert right in str(error.value)
        assert artifact.sha256_file(path) in str(error.value)
    path.unlink()
    with pytest.raises(IntegrityError, match="no such file"):
        cache.gather("mean", NAMES)


def test_a_reader_of_few_rows_hashes_what_it_uses(tmp_path):
    write(tmp_path)
    path = tmp_path / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    cache = Cache(tmp_path, LATENTS)
    assert len(cache.gather("mean", np.array([6, 0, 1]))) == 3
    with pytest.raises(IntegrityError, match=r"00001\.safetensors"):
        cache.gather("mean", np.array([4]))


def test_changed_index_is_refused(tmp_path):
    write(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    artifact.write_json(tmp_path / "index.json", {**index, "shards": index["shards"][:1], "num_rows": 3})
    with pytest.raises(IntegrityError, match=r"index\.json"):
        Cache(tmp_path, LATENTS)


def test_non_finite_values_are_refused(tmp_path):
    with pytest.raises(NumericsError, match=r"00000.*'mean' not finite"):
        CacheWriter(tmp_path, LATENTS).write_shard(0, {"mean": torch.tensor([1.0, float("inf")])})


def test_an_empty_cache_has_no_rows(tmp_path):
    write(tmp_path, splits=(0,))
    assert len(Cache(tmp_path, LATENTS)) == 0


def embeddings(directory):
    writer = CacheWriter(directory, EMBEDDINGS)
    tokens, pooled = torch.randn(3, 4, 2).half(), torch.randn(3, 5).half()
    writer.write_shard(0, {"tokens": tokens, "pooled": pooled})
    artifact.write_json(directory / CAPTIONS, ["b", "ä", "a"])
    artifact.write_tensors(directory / NULL, {"tokens": tokens[0] + 1, "pooled": pooled[0] + 1})
    writer.finish(1, {}, {}, {}, files=[CAPTIONS, NULL])
    return tokens, pooled


def test_text_embeddings_are_found_by_caption(tmp_path):
    tokens, pooled = embeddings(tmp_path)
    found = TextEmbeddings(tmp_path)
    rows = found.rows(["a", "b", "a"])
    assert torch.equal(found.tokens(rows), tokens[[2, 0, 2]].float())
    assert torch.equal(found.pooled(rows), pooled[[2, 0, 2]].float())
    assert torch.equal(found.null_tokens, (tokens[0] + 1).float())
    assert torch.equal(found.null_pooled, (pooled[0] + 1).float())
    assert found.captions == ["b", "ä", "a"]
    with pytest.raises(IntegrityError, match="no embedding of 'c'"):
        found.rows(["a", "c"])


@pytest.mark.parametrize("name", [CAPTIONS, NULL])
def test_changed_side_files_are_refused(tmp_path, name):
    embeddings(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(b"b", b"c", 1) + b" ")
    with pytest.raises(IntegrityError, match=name):
        TextEmbeddings(tmp_path)
