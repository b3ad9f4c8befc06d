import json
import os
import pickle
import tarfile
import time

import numpy as np
import pytest
import webdataset

from ldm.core import hashes, images, shards, shards_index
from ldm.core.errors import IntegrityError

SAMPLES = [(f"key-{i:03d}", {"json": b"{}" * i, "png": bytes(range(i % 256)) * 5}) for i in range(25)]


@pytest.fixture
def split(tmp_path):
    shards.write(tmp_path / "split", SAMPLES, 10)
    return tmp_path / "split"


def _forge(split, **facts):
    """Rewrite the index with a seal that is right."""
    index = shards_index.Index.model_validate(json.loads((split / "index.json").read_text()) | facts)
    index.sealed().write(split)


def _former(split, total=25, **facts):
    """Rewrite the index as former commits wrote it, with changed facts of the first tar."""
    tars = json.loads((split / "index.json").read_text())["shards"]
    former = {"format": 1, "num_samples": total, "shards": [tars[0] | facts, *tars[1:]]}
    (split / "index.json").write_text(json.dumps(former))


def _read_all(split):
    return list(shards.Shards(split))


def test_images_are_read_from_webp_and_png_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for part, encode in (("webp", images.encode), ("png", images.encode_png)):
        shards.write(tmp_path / part, [(f"{i}", {"json": b"{}", part: encode(p)}) for i, p in enumerate(pixels)], 2)
        batch = shards.Shards(tmp_path / part).images([2, 0])
        assert np.array_equal(batch.permute(0, 2, 3, 1), pixels[[2, 0]])


def test_samples_come_back_in_order_with_every_byte(split):
    read = shards.Shards(split)
    assert len(read) == 25 and read.num_shards == 3
    assert list(zip(read.keys, read, strict=True)) == SAMPLES
    assert [list(read.shard_samples(i)) for i in range(3)] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]
    for i in (24, 0, 13, np.int64(9)):
        assert read[i] == SAMPLES[i][1]
    assert [list(sample.items()) for sample in read.read([20, 3, 4, 20])] == [
        list(SAMPLES[i][1].items()) for i in (20, 3, 4, 20)
    ]
    assert read.keys[-1] == "key-024" and read.keys[8:12] == ["key-008", "key-009", "key-010", "key-011"]
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
    assert {p.name for p in split.iterdir()} == {"00000.tar", "00001.tar", "00002.tar", "ends.npy", "index.json"}
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


@pytest.mark.parametrize("name", ["00001.tar", "ends.npy"])
def test_every_bit_flip_is_refused_with_both_hashes(split, name):
    rng = np.random.default_rng(0)
    path = split / name
    good = path.read_bytes()
    index = json.loads((split / "index.json").read_text())
    expected = index["shards"][1]["sha256"] if name.endswith(".tar") else index["ends_sha256"]
    for read in (_read_all, lambda split: shards.Shards(split).verify()):
        for _ in range(20):
            bad = bytearray(good)
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
            path.write_bytes(bad)
            with pytest.raises(IntegrityError, match=rf"{name}: SHA-256 \w{{64}}; expected SHA-256 {expected}"):
                read(split)
    path.write_bytes(good)
    assert len(_read_all(split)) == 25


def test_every_changed_byte_of_an_index_is_refused(split):
    path = split / "index.json"
    good = path.read_bytes()
    blanks = {i for i, byte in enumerate(good) if byte in b" \n"}
    for i in set(range(len(good))) - blanks:
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        with pytest.raises(IntegrityError, match=r"index\.json"):
            shards.Shards(split)


def test_only_shards_that_are_read_must_be_whole(split):
    (split / "00000.tar").unlink()
    damaged = bytearray((split / "00002.tar").read_bytes())
    damaged[600] ^= 1
    (split / "00002.tar").write_bytes(damaged)
    read = shards.Shards(split)
    assert [read[i] for i in range(10, 20)] == [parts for _, parts in SAMPLES[10:20]] and len(read) == 25
    assert read.keys[13] == "key-013"
    with pytest.raises(IntegrityError, match=r"00000\.tar: no such file"):
        read[9]
    with pytest.raises(IntegrityError, match=r"00002\.tar: SHA-256"):
        read.keys[20]


def test_missing_and_truncated_shards_are_refused(split):
    path = split / "00002.tar"
    good = path.read_bytes()
    path.write_bytes(good[:-512])
    with pytest.raises(IntegrityError, match=rf"{len(good) - 512} bytes; expected {len(good)} bytes"):
        _read_all(split)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"00002\.tar: no such file"):
        _read_all(split)


@pytest.mark.parametrize("junk", [b"\0" * 512 + b"x" * 512, b"x" * 1024])
def test_a_writer_refuses_a_shard_that_does_not_read_back(split, junk):
    path = split / "00000.tar"
    good = path.read_bytes()
    link = tarfile.TarInfo("key-000.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(path) as tar:
        boundary = tar.getmembers()[6].offset
    for bad, found in (
        (good[:boundary], "the end is cut"),
        (good + junk, "followed by data"),
        (link.tobuf(tarfile.USTAR_FORMAT) + good, "byte 0: not the header of a plain file"),
    ):
        path.write_bytes(bad)
        with pytest.raises(IntegrityError, match=found):
            shards_index.Contents().add(path)


def test_two_samples_of_one_key_are_a_bug(tmp_path):
    with pytest.raises(AssertionError, match="two samples have one key"):
        shards.write(tmp_path, [SAMPLES[0], SAMPLES[1], SAMPLES[0]], 10)


def test_counts_that_disagree_are_refused(split):
    tars = json.loads((split / "index.json").read_text())["shards"]
    _forge(split, num_samples=26)
    with pytest.raises(IntegrityError, match=r"25 samples in all tars, 25 in ends\.npy; expected 26"):
        shards.Shards(split)
    _forge(split, num_samples=30, shards=[*tars, tars[2]])
    with pytest.raises(IntegrityError, match=r"tars 00000.tar, 00001.tar, 00002.tar, 00002.tar; expected 00000.tar, 0"):
        shards.Shards(split)


def test_ends_that_do_not_fit_the_tars_are_refused_with_the_place(split):
    ends = np.load(split / "ends.npy")
    ends[12] += 1
    np.save(split / "ends.npy", ends)
    _forge(split, ends_sha256=hashes.sha256_file(split / "ends.npy"))
    read = shards.Shards(split)
    assert read[11] == SAMPLES[11][1]
    for i in (12, 13):
        with pytest.raises(IntegrityError, match=r"00001\.tar: byte \d+: (no sample|not the header)"):
            read[i]


def test_a_split_of_a_former_commit_is_read(split):
    keys_sha256 = shards.Shards(split).keys_sha256
    (split / "ends.npy").unlink()
    _former(split)
    read = shards.Shards(split)
    assert list(zip(read.keys, read, strict=True)) == SAMPLES and read.keys_sha256 == keys_sha256
    read.verify()
    for facts, found in (
        ({"num_samples": 9}, r"00000\.tar: 10 samples; expected 9 samples"),
        ({"sha256": "0" * 64}, r"00000\.tar: SHA-256 \w+; expected SHA-256 0000"),
        ({"num_bytes": 5120}, r"00000\.tar: \d+ bytes; expected 5120 bytes"),
    ):
        good = (split / "index.json").read_text()
        _former(split, **facts)
        with pytest.raises(IntegrityError, match=found):
            shards.Shards(split)
        (split / "index.json").write_text(good)
    _former(split, total=26)
    with pytest.raises(IntegrityError, match="25 samples in all tars"):
        shards.Shards(split)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"format": 3, "num_samples": 0, "shards": []}', "format"),
        ('{"format": 2, "num_samples": 0, "shards": []}', "keys_sha256: Field required"),
        ('{"format": 1, "num_samples": 1, "shards": [{"name": "../0.tar"}]}', r"shards\.0\.name"),
    ],
)
def test_an_index_of_another_make_is_refused(tmp_path, text, found):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(IntegrityError, match=found):
        shards.Shards(tmp_path)
