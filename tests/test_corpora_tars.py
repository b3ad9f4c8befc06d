"""The reader of tars, against Python's tarfile for whole ones, and against what was done to damaged ones."""

import io
import random
import struct
import tarfile

import pytest

from ldm.corpora import tars
from ldm.corpora.tars import Damage, Member, Scan
from tests import mutations

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


class Bytes:
    """Bytes as the contents of a tar, which count how often they are read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.num_reads = data, len(data), 0

    def read(self, offset: int, size: int) -> bytes:
        assert offset >= 0 and 0 <= size < 1 << 40, "nothing is read by a size that a tar claims"
        self.num_reads += 1
        return self.data[offset : offset + size]


def scan(data: bytes, is_deep: bool = False) -> Scan:
    contents = Bytes(data)
    found = tars.scan(contents, is_deep)
    assert contents.num_reads < 50 + 8 * len(data) // 512, "every step leads on"
    return found


def header(name: bytes = b"a.txt", size: bytes = b"00000000003\0", kind: bytes = b"0", **fields: bytes) -> bytearray:
    block = bytearray(512)
    block[0 : len(name)] = name
    block[124:136], block[156:157], block[257:265] = size, kind, fields.get("magic", b"ustar\x0000")
    block[157 : 157 + len(fields.get("link", b""))] = fields.get("link", b"")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    return block


def block(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def names(found: Scan) -> list[str]:
    return [member.name for member in found.members]


GOOD = bytes(header(b"b.txt")) + block(b"two")
END = bytes(1024)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_tar_is_read_as_tarfile_reads_it(kind):
    stream, draw = io.BytesIO(), random.Random(0)
    with tarfile.open(fileobj=stream, mode="w", format=FORMATS[kind]) as tar:
        for name in (
            "a.txt",
            "sub/b.png",
            *((f"{'d' * 90}/{'n' * 99}.c", "é" * 60, "n" * 100) if kind != "ustar" else ()),
        ):
            for link in (None, "sub/b.png", "l" * 150):
                info = tarfile.TarInfo(name)
                info.size = draw.choice((0, 1, 511, 512, 513, 3000)) if link is None else 0
                info.mtime = 1.5 if kind == "pax" else 1
                info.type, info.linkname = (tarfile.REGTYPE, "") if link is None else (tarfile.LNKTYPE, link[:90])
                info.linkname = link or ""
                if kind != "ustar" or link != "l" * 150:
                    tar.addfile(info, io.BytesIO(draw.randbytes(info.size)))
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as tar:
        wanted = [(info.name, info.offset_data, info.size, info.isreg(), info.linkname) for info in tar.getmembers()]
    found = scan(stream.getvalue())
    assert found.damages == found.doubts == []
    assert [(m.name.rstrip("/"), m.offset, m.size, m.kind == "file", m.link) for m in found.members] == wanted


def test_base_256_old_signed_checksums_and_blank_numbers_are_read():
    old = header("é.txt".encode())
    rest = bytes(old[:148] + old[156:])
    old[148:156] = b"%06o\0 " % (sum(struct.unpack(f"{len(rest)}b", rest)) + 256)
    wide = header(b"w.txt", b"\x80" + (3).to_bytes(11))
    folder = header(b"f/", b" " * 11 + b"\0")
    data = bytes(old) + block(b"one") + bytes(wide) + block(b"two") + bytes(folder)
    found = scan(data + END)
    assert [(m.name, m.offset, m.size, m.kind) for m in found.members] == [
        ("é.txt", 512, 3, "file"),
        ("w.txt", 1536, 3, "file"),
        ("f/", 2560, 0, "folder"),
    ]


@pytest.mark.parametrize(
    "size",
    [
        *(b"\xff" * 10 + b"\xfe\x00", b"\xff" * 12, b"-0000000001\0", b"0x000000010\0", b"1" * 12 + b""),
        *(b"\x80" + b"\x7f" * 11, b"\x80" + (10**6).to_bytes(11), b"77777777777\0"),
    ],
    ids=["cve-2025-8194", "minus one", "minus", "hex", "no end", "2 to the 87", "million", "8 GiB"],
)
def test_a_size_that_cannot_be_costs_its_member_alone(size):
    data = bytes(header(b"a.txt")) + block(b"one") + bytes(header(b"bad.txt", size)) + block(b"two") + GOOD + END
    found = scan(data)
    assert names(found) == ["a.txt", "b.txt"]
    assert [damage.offset for damage in found.damages] == [1024]


PAX = block(b"19 path=\xc3\xa9/long.txt\n")


@pytest.mark.parametrize(
    ("bad", "count"),
    [
        (bytes(header(b"x", b"00000000023\0", b"x")) + block(b"19 path=abcdefghijkl"), 2),
        (bytes(header(b"x", b"00000000023\0", b"x")) + block(b"0 path=abcdefghijkl\n"), 2),
        (bytes(header(b"x", b"00000000023\0", b"x")) + block(b"-9 path=abcdefghij\n"), 2),
        (bytes(header(b"x", b"00000000023\0", b"x")) + block(b"9999999 path=abcd\n"), 2),
        (bytes(header(b"x", b"77777777777\0", b"x")) + PAX, 2),
        (bytes(header(b"x", b"77777777777\0", b"L")) + block(b"name"), 2),
        (bytes(header(b"x", b"00000003000\0", b"L")) + block(b"name"), 2),
        (b"X" + bytes(header(b"x", b"00000000023\0", b"x"))[1:] + PAX, 2),
        (bytes(header(b"x", b"00000000020\0", b"x")) + block(b"16 size=-1000\n"), 2),
    ],
    ids=["cut", "zero", "negative", "long", "huge", "huge name", "swallowing name", "flipped", "negative size"],
)
def test_a_member_that_loses_its_name_is_not_taken_by_another_one(bad, count):
    lost = bytes(header(b"wrong?.txt")) + block(b"bad")
    found = scan(bad + lost + GOOD + END)
    assert names(found) == ["b.txt"] and 1 <= len(found.damages) <= count


def test_an_extended_header_at_the_end_is_damage():
    data = bytes(header(b"x", b"00000000004\0", b"L")) + block(b"name")
    for end in (b"", END):
        assert scan(data + end).members == [] and len(scan(data + end).damages) == 1


@pytest.mark.parametrize("kind", [b"2", b"3", b"4", b"6", b"S", b"Z", b"1"])
def test_what_is_no_file_is_named_by_its_kind(kind):
    found = scan(bytes(header(b"a.txt", b"00000000000\0", kind, link=b"/etc/passwd")) + GOOD + END)
    assert names(found) == ["a.txt", "b.txt"] and not found.damages
    assert found.members[0].kind != "file" and found.members[0].link == "/etc/passwd"


def test_joined_tars_are_read_to_the_end_and_holes_are_not_taken_for_joints():
    first, second = bytes(header(b"a.txt")) + block(b"one"), GOOD + END
    assert names(scan(first + bytes(10240 - 1024) + second)) == ["a.txt", "b.txt"]
    joined = scan(first + bytes(10240 - 1024) + second)
    assert (joined.damages, joined.doubts) == ([], ["another tar from byte 10240 on"])
    for num_zeros in (512, 1024, 4096):
        found = scan(first + bytes(num_zeros) + second)
        assert names(found) == ["a.txt", "b.txt"] and [damage.offset for damage in found.damages] == [1024]


def test_the_end_may_be_missing_and_is_told():
    data = bytes(header(b"a.txt")) + block(b"one") + GOOD
    for end, is_closed in ((b"", False), (bytes(512), False), (bytes(1024), True), (bytes(1300), False)):
        found = scan(data + end)
        assert (names(found), found.damages) == (["a.txt", "b.txt"], [])
        assert found.doubts == ([] if is_closed else ["no end"])
    assert scan(b"").damages == [Damage(0, "an empty file", "")]
    assert scan(bytes(100)).damages == [Damage(0, "100 bytes of zeros", "")]
    assert scan(bytes(10240)) == Scan([], [], ["no member"])


def test_every_cut_costs_what_is_behind_it():
    whole = mutations.original(random.Random(1))
    everything = scan(whole.data).members
    for size in range(0, len(whole.data), 101):
        found = scan(whole.data[:size])
        kept = [member for member in everything if member.offset + member.size <= size]
        assert found.members == kept
        is_within = size and any(start < size < end for _, start, end in whole.ranges)
        is_lost = len(kept) < len(everything) and is_within
        cut = next((m for m in everything if m.offset + m.size > size), None)
        assert bool(found.damages) == (size == 0 or (is_lost and not _is_padding(kept, cut, size)))


def _is_padding(kept: list[Member], cut: Member | None, size: int) -> bool:
    """Whether a cut falls into the zeros that pad the last whole member."""
    last = kept[-1] if kept else None
    return last is not None and cut is not None and size <= last.offset + -(-last.size // 512) * 512


def test_a_member_that_swallows_others_is_found_by_reading_contents():
    inner = GOOD + bytes(header(b"c.txt")) + block(b"3rd")
    data = bytes(header(b"a.txt", b"%011o\0" % (512 + len(inner)))) + block(b"one") + inner + END
    assert names(scan(data)) == ["a.txt"] and not scan(data).damages
    found = scan(data, is_deep=True)
    assert names(found) == ["b.txt", "c.txt"]
    assert found.damages == [
        Damage(0, "contents of 2560 bytes, in which the header of another member stands at byte 1024", "a.txt")
    ]
    nested = GOOD + END
    data = bytes(header(b"a.tar", b"%011o\0" % len(nested))) + nested + GOOD + END
    assert names(scan(data, is_deep=True)) == ["a.tar", "b.txt"]


def test_a_smaller_size_is_seen_by_the_padding():
    data = bytes(header(b"a.txt", b"00000000002\0")) + block(b"one") + GOOD + END
    found = scan(data)
    assert names(found) == ["b.txt"] and [damage.name for damage in found.damages] == ["a.txt"]


def test_spliced_bytes_shift_headers_which_are_found_at_any_byte():
    whole = mutations.original(random.Random(3))
    at = whole.ranges[3][1] + 700
    found = scan(whole.data[:at] + b"#" * 77 + whole.data[at:])
    everything = scan(whole.data).members
    taken = set(names(found))
    assert [member.name for member in everything if member.name not in taken] == [everything[3].name]


def test_text_full_of_magic_words_takes_no_time():
    data = bytes(header(b"a.txt", b"%011o\0" % 10**6)) + b"ustar" * 200_000 + b"#" * 100 + GOOD
    found = scan(data)
    assert names(found) == ["b.txt"] and [damage.name for damage in found.damages] == ["a.txt"]
