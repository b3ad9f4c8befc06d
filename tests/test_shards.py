import json
import os
import pickle
import tarfile
import time

import numpy as np
import pytest
import webdataset

from ldm.core import images, shards
from ldm.core.errors import IntegrityError

SAMPLES = [(f"key-{i:03d}", {"json": b"{}" * i, "png": bytes(range(i % 256)) * 5}) for i in range(25)]


@pytest.fixture
def split(tmp_path):
    shards.write(tmp_path / "split", SAMPLES, 10)
    return tmp_path / "split"


def _forge(split, shard=0, **facts):
    """Rewrite the index so that it agrees with a changed shard."""
    index = json.loads((split / "index.json").read_text())
    index["shards"][shard] |= facts
    (split / "index.json").write_text(json.dumps(index))


def test_samples_come_back_in_order_with_every_byte(split):
    read = shards.Shards(split)
    assert len(read) == 25 and read.num_shards == 3 and read.parts == ("json", "png")
    assert list(zip(read.keys, read, strict=True)) == SAMPLES
    assert [list(read.shard_samples(i)) for i in range(3)] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]
    for i in (24, 0, 13, np.int64(9)):
        assert read[i] == SAMPLES[i][1]
    for i in (25, -1):
        with pytest.raises(IndexError):
            read[i]


def test_what_is_added_as_another_group_leaves_other_shards_alone(tmp_path):
    def written(name, groups):
        with shards.Writer(tmp_path / name, 10) as writer:
            for group, samples in groups.items():
                for key, parts in samples:
                    writer.write(key, parts, group)
        return shards.Shards(tmp_path / name)

    first, second, third = SAMPLES[:13], SAMPLES[13:22], SAMPLES[22:]
    alone, grown = written("alone", {"a": first, "c": third}), written("grown", {"a": first, "b": second, "c": third})
    assert [len(alone.shard_samples(i)) for i in range(alone.num_shards)] == [10, 3, 3]
    assert set(alone.shard_sha256) < set(grown.shard_sha256) and grown.num_shards == 4
    tiny = written("tiny", {str(i): [sample] for i, sample in enumerate(SAMPLES)})
    assert [len(tiny.shard_samples(i)) for i in range(tiny.num_shards)] == [1] * 25
    with shards.Writer(tmp_path / "large", 100) as writer:
        for i, (key, parts) in enumerate(SAMPLES):
            writer.write(key, parts, str(i))
    large = shards.Shards(tmp_path / "large")
    assert [len(large.shard_samples(i)) for i in range(large.num_shards)] == [10, 10, 5]


def test_an_independent_reader_agrees(split):
    dataset = webdataset.WebDataset([str(p) for p in sorted(split.glob("*.tar"))], shardshuffle=False)
    assert [(s["__key__"], {"json": s["json"], "png": s["png"]}) for s in dataset] == SAMPLES
    with tarfile.open(split / "00000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.isreg()) for m in tar.getmembers()} == {(0, 0, 0, True)}


def test_bytes_depend_on_nothing_but_samples_and_order(split, tmp_path):
    time.sleep(1.1)  # a modification time in a tar counts whole seconds
    shards.write(tmp_path / "again", iter(SAMPLES), 10)
    assert {p.name for p in split.iterdir()} == {"00000.tar", "00001.tar", "00002.tar", "index.json"}
    for path in split.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert shards.Shards(split).sha256 == shards.Shards(tmp_path / "again").sha256


def test_an_empty_split_is_a_split(tmp_path):
    shards.write(tmp_path, [], 10)
    read = shards.Shards(tmp_path)
    assert len(read) == 0 and read.num_shards == 0 and list(read) == []


def test_the_index_is_written_only_when_all_samples_are(tmp_path):
    def broken():
        yield SAMPLES[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(tmp_path, broken(), 10)
    assert not (tmp_path / "index.json").exists()
    with pytest.raises(IntegrityError, match=r"index\.json: no such file"):
        shards.Shards(tmp_path)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "ä", "x" * 81])
def test_unfit_keys_are_refused(tmp_path, key):
    with pytest.raises(AssertionError):
        shards.write(tmp_path, [(key, {"txt": b""})], 10)


def test_all_samples_have_the_same_parts(tmp_path):
    with pytest.raises(AssertionError, match="parts"):
        shards.write(tmp_path, [("a", {"txt": b""}), ("b", {"json": b""})], 10)


def test_survives_pickling_and_forking(split):
    read = pickle.loads(pickle.dumps(shards.Shards(split)))
    child = os.fork()
    if child == 0:
        os._exit(0 if [read[i] for i in range(25)] == [parts for _, parts in SAMPLES] else 1)
    assert [read[i] for i in reversed(range(25))] == [parts for _, parts in reversed(SAMPLES)]
    assert os.waitpid(child, 0)[1] == 0


def test_every_bit_flip_is_refused_with_both_hashes(split):
    rng = np.random.default_rng(0)
    path = split / "00001.tar"
    good = path.read_bytes()
    expected = json.loads((split / "index.json").read_text())["shards"][1]["sha256"]
    for _ in range(40):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        with pytest.raises(IntegrityError, match=rf"00001\.tar: SHA-256 \w{{64}}; expected SHA-256 {expected}"):
            shards.Shards(split)
    path.write_bytes(good)
    assert len(shards.Shards(split)) == 25


def test_missing_and_truncated_shards_are_refused_without_hashing_too(split):
    path = split / "00002.tar"
    good = path.read_bytes()
    path.write_bytes(good[:-512])
    with pytest.raises(IntegrityError, match=rf"{len(good) - 512} bytes; expected {len(good)} bytes"):
        shards.Shards(split, verify=False)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"00002\.tar: no such file"):
        shards.Shards(split, verify=False)


def test_a_tar_cut_on_a_member_boundary_is_refused_even_if_the_index_agrees(split):
    path = split / "00000.tar"
    with tarfile.open(path) as tar:
        end_of_sample = tar.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:end_of_sample])
    _forge(split, num_bytes=end_of_sample)
    with pytest.raises(IntegrityError, match="the end is cut"):
        shards.Shards(split, verify=False)


@pytest.mark.parametrize("junk", [b"\0" * 512 + b"x" * 512, b"x" * 1024])
def test_data_behind_the_end_is_refused(split, junk):
    path = split / "00000.tar"
    path.write_bytes(path.read_bytes() + junk)
    _forge(split, num_bytes=path.stat().st_size)
    with pytest.raises(IntegrityError, match="followed by data"):
        shards.Shards(split, verify=False)


def test_links_and_directories_are_refused(split):
    path = split / "00000.tar"
    link = tarfile.TarInfo("key-000.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path.write_bytes(link.tobuf(tarfile.USTAR_FORMAT) + path.read_bytes())
    _forge(split, num_bytes=path.stat().st_size)
    with pytest.raises(IntegrityError, match="byte 0: not the header of a plain file"):
        shards.Shards(split, verify=False)


def test_counts_that_disagree_are_refused(split):
    _forge(split, num_samples=9)
    with pytest.raises(IntegrityError, match="10 samples; expected 9 samples"):
        shards.Shards(split)
    _forge(split, num_samples=10)
    index = json.loads((split / "index.json").read_text())
    (split / "index.json").write_text(json.dumps(index | {"num_samples": 26}))
    with pytest.raises(IntegrityError, match=r"25 samples .* expected 26"):
        shards.Shards(split)


def test_a_shard_that_stands_twice_is_refused(split):
    index = json.loads((split / "index.json").read_text())
    index["shards"].append(index["shards"][2])
    (split / "index.json").write_text(json.dumps(index | {"num_samples": 30}))
    with pytest.raises(IntegrityError, match="30 samples with 25 different keys"):
        shards.Shards(split)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"format": 2, "num_samples": 0, "shards": []}', "format"),
        ('{"format": 1, "num_samples": 1, "shards": [{"name": "../0.tar"}]}', r"shards\.0\.name"),
    ],
)
def test_an_index_of_another_make_is_refused(tmp_path, text, found):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(IntegrityError, match=found):
        shards.Shards(tmp_path)


def test_random_access_and_decoding_of_a_small_image_is_fast(tmp_path):
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    shards.write(tmp_path, [(f"{i}", {"json": b"{}", "png": images.encode_png(image)}) for i in range(200)], 50)
    read = shards.Shards(tmp_path)
    order = rng.permutation(200)

    def seconds_per_sample() -> float:
        start = time.perf_counter()
        for i in order:
            images.decode_png(read[i]["png"])
        return (time.perf_counter() - start) / len(order)

    # The best of several: what the code costs, not what else the machine does.
    assert min(seconds_per_sample() for _ in range(10)) < 0.2e-3
