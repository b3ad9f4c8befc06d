import itertools
import json

import numpy as np
import pytest
import torch

from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.core import artifact
from ldm.core.errors import IntegrityError, NumericsError
from ldm.precompute.cache import START, Cache, CacheWriter, Lookup
from ldm.text.embedding.embeddings import INDEX, NULL, WORDS, TextEmbeddings
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
    artifact.write_tensors(directory / INDEX, Lookup.columns(Lookup.digests(["b", "ä", "a"])))
    artifact.write_json(directory / WORDS, ["a", "b", "ä"])
    artifact.write_tensors(directory / NULL, {"tokens": tokens[0] + 1, "pooled": pooled[0] + 1})
    writer.finish(1, {"padding": "attended"}, {}, {}, files=[INDEX, NULL, WORDS])
    return tokens, pooled


def test_text_embeddings_are_found_by_caption(tmp_path):
    tokens, pooled = embeddings(tmp_path)
    stored = TextEmbeddings(tmp_path)
    found = stored.parts(stored.rows(["a", "b", "a"]))
    assert found.keys() == {"tokens", "pooled"}
    assert torch.equal(found["tokens"], tokens[[2, 0, 2]].float())
    assert torch.equal(found["pooled"], pooled[[2, 0, 2]].float())
    assert stored.parts(np.array([1]), with_pooled=False).keys() == {"tokens"}
    assert torch.equal(stored.null["tokens"], (tokens[:1] + 1).float())
    assert torch.equal(stored.null["pooled"], (pooled[:1] + 1).float())
    assert "ä" in stored and "c" not in stored and "" not in stored
    with pytest.raises(IntegrityError, match="no embedding of 'c'"):
        stored.rows(["a", "c"])


@pytest.mark.parametrize("name", [INDEX, WORDS, NULL])
def test_changed_side_files_are_refused(tmp_path, name):
    embeddings(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match=name):
        TextEmbeddings(tmp_path)


def test_rows_of_different_lengths_are_stored_without_padding(tmp_path):
    lengths, rng = [3, 1, 4, 2, 1], np.random.default_rng(0)
    rows = [torch.from_numpy(rng.normal(size=(length, 2))).half() for length in lengths]
    writer = CacheWriter(tmp_path, LATENTS)
    for number, part in enumerate((rows[:2], rows[2:])):
        starts = torch.tensor([0, *itertools.accumulate(len(row) for row in part)])
        writer.write_shard(number, {"x": torch.cat(part), START: starts, "pooled": torch.zeros(len(part))})
    writer.finish(2, {}, {}, {})
    cache = Cache(tmp_path, LATENTS)
    assert len(cache) == 5
    asked = np.array([4, 2, 0, 2, 1])
    found, is_there = cache.gather_padded("x", asked, 5)
    assert found.shape == (5, 5, 2) and found.dtype == torch.float16
    assert is_there.sum(1).tolist() == [lengths[row] for row in asked]
    for row, padded, there in zip(asked, found, is_there, strict=True):
        assert torch.equal(padded[there], rows[row]) and not padded[~there].any()
    assert sum(len(artifact.open_tensors(path)["x"]) for path in tmp_path.glob("0*")) == sum(lengths)


def test_a_linked_shard_is_the_file_itself(tmp_path, monkeypatch):
    write(tmp_path / "one")
    for name in ("linked", "copied"):
        writer = CacheWriter(tmp_path / name, LATENTS)
        paths = sorted((tmp_path / "one").glob("0*"))
        for number, path in enumerate(paths):
            writer.link_shard(number, path)
        hashes = [artifact.sha256_file(path) for path in paths]
        writer.finish(3, {"precision": "fp32"}, {"autoencoder": "aa"}, {"factor": 8}, sha256=hashes)
        for path in (tmp_path / "one").iterdir():
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()
        is_one = [(tmp_path / name / path.name).samefile(path) for path in paths]
        assert is_one == [name == "linked"] * 3

        def refuse(*_):
            raise OSError("no links here")

        monkeypatch.setattr("os.link", refuse)


def test_lookup_finds_every_text_and_no_other():
    texts = [f"text {number}" for number in range(1000)]
    lookup = Lookup(Lookup.columns(Lookup.digests(texts)))
    order = np.random.default_rng(0).permutation(1000)
    assert lookup.rows([texts[row] for row in order]).tolist() == order.tolist()
    assert (lookup.rows([f"other {number}" for number in range(1000)]) == -1).all()
    assert lookup.rows([]).shape == (0,)
    assert Lookup(Lookup.columns(Lookup.digests([]))).rows(["a"]).tolist() == [-1]
    assert np.unique(Lookup.digests(texts)).size == 2000


def test_lookup_tells_texts_apart_that_share_half_of_a_hash(monkeypatch):
    """As one pair in 10^19 does."""
    halves = {"a": (5, 1), "b": (5, -2), "c": (5, 7), "d": (-5, 1), "e": (9, 0), "no": (5, 3), "last": (9, 4)}
    monkeypatch.setattr(Lookup, "digests", staticmethod(lambda texts: np.array([halves[t] for t in texts])))
    lookup = Lookup(Lookup.columns(Lookup.digests(list("abcde"))))
    assert lookup.rows(["e", "c", "no", "a", "last", "b", "d"]).tolist() == [4, 2, -1, 0, -1, 1, 3]
