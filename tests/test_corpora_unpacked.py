"""Tars packed by gzip: read at any offset as they were, and distrusted where they are damaged."""

import gzip
import io
import random
import zlib

import pytest

from ldm.corpora import unpacked
from ldm.corpora.files import Files
from ldm.corpora.tars import Damage
from ldm.corpora.unpacked import Gzip, Plain
from tests import mutations


def _opened(folder, data):
    (folder / "a.tar.gz").write_bytes(data)
    return Gzip(Files(folder), "a.tar.gz", len(data))


def _look(folder, data, name="a.tar.gz"):
    (folder / name).write_bytes(data)
    return unpacked.look(Files(folder), name, len(data))


def test_bytes_at_any_offset_are_those_that_were_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(unpacked, "_BETWEEN_MARKS_BYTES", 10_000)
    draw = random.Random(0)
    data = b"".join(draw.randbytes(50) * draw.randrange(1, 40) for _ in range(200))
    half = len(data) // 2
    for packed in (
        gzip.compress(data),
        gzip.compress(data[:half]) + bytes(3000) + gzip.compress(data[half:]) + bytes(9),
    ):
        tar = _opened(tmp_path, packed)
        assert (tar.size, tar.fault, tar.is_cut) == (len(data), "", False) and len(tar._marks) > 10
        for _ in range(300):
            offset, size = draw.randrange(len(data) + 100), draw.choice((0, 1, 500, 5000, 50_000))
            assert tar.read(offset, size) == data[offset : offset + size]


def test_plain_bytes_at_any_offset(tmp_path):
    data = random.Random(0).randbytes(50_000)
    (tmp_path / "a.tar").write_bytes(data)
    tar, draw = Plain(Files(tmp_path), "a.tar", len(data)), random.Random(0)
    for _ in range(300):
        offset, size = draw.randrange(len(data) + 100), draw.choice((0, 1, 500, 20_000, 10**30))
        assert tar.read(offset, size) == data[offset : offset + size]


def test_what_stands_before_a_cut_is_read_and_nothing_of_a_damaged_stream(tmp_path):
    whole = mutations.original(random.Random(1))
    packed = gzip.compress(whole.data)
    _, everything = _look(tmp_path, packed)
    assert everything.members and not (everything.doubts or everything.damages)
    _, cut = _look(tmp_path, packed[: len(packed) // 2])
    assert 0 < len(cut.members) < len(everything.members) and cut.members == everything.members[: len(cut.members)]
    assert cut.damages[-1].found == "the gzip stream is cut"
    for i in range(30, len(packed), 97):
        _, flipped = _look(tmp_path, packed[:i] + bytes([packed[i] ^ 4]) + packed[i + 1 :])
        assert flipped.members == [] and flipped.damages[0].found.startswith("a damaged gzip stream: ")


def test_a_bomb_is_named_and_not_unpacked_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "_ALWAYS_ALLOWED_BYTES", 1 << 21)
    stream, packer = io.BytesIO(), zlib.compressobj(9, wbits=31)
    for _ in range(64):
        stream.write(packer.compress(bytes(1 << 20)))
    stream.write(packer.flush())
    tar, found = _look(tmp_path, stream.getvalue())
    assert tar.size < 16 << 20 and found.members == []
    assert found.damages[0].found.startswith("a bomb: it unpacks to more than ")


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("a.tar", gzip.compress(b"x" * 2000, mtime=0), "a file that gzip has packed, and that is not named so"),
        ("a.tar", b"PK\x03\x04" + bytes(600), "a file that zip has packed, and that is not named so"),
        ("a.tar.xz", b"\xfd7zXZ", "packed as xz, which is not read"),
        ("a.tgz", b"no gzip", "a damaged gzip stream: Error -3 while decompressing data: incorrect header check"),
    ],
)
def test_what_is_packed_otherwise_is_named(tmp_path, name, data, found):
    assert _look(tmp_path, data, name)[1].damages[0] == Damage(0, found, "")


def test_what_cannot_be_read_is_named(tmp_path):
    _, found = unpacked.look(Files(tmp_path), "a.tar", 100)
    assert found.damages == [Damage(0, "it cannot be read: No such file or directory", "")]
