"""A strict reader of tars: what can be read of one, and every place that is damaged. Nothing is ever extracted.

It knows ustar, GNU long names, PAX and sizes in base 256. Python's tarfile ends in silence at the first damaged header,
and a negative size makes it read one header for ever (CVE-2025-8194); here every step leads on, and no contents reach
beyond the end of the file. After a damaged place the next header is looked for, at any byte.

A member is believed if its header has the right checksum, its contents are followed by another header, by zeros or by
the end of the file, and the zeros that pad them are zeros. Contents have no checksum in a tar.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar's manual, "Basic Tar Format".
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

BLOCK = 512
_RECORD = 20 * BLOCK
"""What programs pad the end of a tar to."""
_MAGIC = b"ustar"
_MAGIC_AT = 257
_MAX_EXTENDED_BYTES = 1 << 20
_MAX_NAME_BYTES = 4096
_SEARCH_BYTES = 1 << 20
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]+)=")
_EXTENDED = (b"x", b"X", b"g", b"L", b"K")
"""Types of headers that say something of the member after them: PAX, PAX of Solaris, PAX for all, GNU name and link."""
_KINDS: Mapping[bytes, "Kind"] = {
    **dict.fromkeys((b"0", b"\0", b"7"), "file"),
    **{b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe"},
    b"S": "sparse file",
}
Kind = Literal[
    "file", "hard link", "symbolic link", "device", "pipe", "folder", "sparse file", "member of unknown type"
]


class Contents(Protocol):
    """The bytes of a tar, unpacked."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from an offset on; fewer at the end."""
        ...


class Member(NamedTuple):
    """A file, or a link or the like, in a tar."""

    name: str
    """As it stands there; bytes that are not UTF-8 are surrogates."""
    offset: int
    """Of the first byte of its contents."""
    size: int
    """Of its contents, in bytes."""
    kind: Kind
    link: str
    """What a link leads to, else empty."""


class Damage(NamedTuple):
    """A damaged place of a tar."""

    offset: int
    """Byte at which it begins."""
    found: str
    """What is wrong there."""
    name: str
    """The member that it costs, or empty if its name cannot be read."""


@dataclass(frozen=True)
class Scan:
    """What can be read of a tar, and what not, both in the order of the bytes."""

    members: list[Member] = field(default_factory=list[Member])
    damages: list[Damage] = field(default_factory=list[Damage])
    doubts: list[str] = field(default_factory=list[str])
    """What may be right, and may be a loss that left no other trace."""


class _DamagedError(Exception):
    """A header that cannot be right.

    next_offset: where to look for another one. is_name_lost: whether the next one belongs to it, and has a wrong name.
    """

    def __init__(self, found: str, next_offset: int, is_name_lost: bool = False) -> None:
        super().__init__(found)
        self.found, self.next_offset, self.is_name_lost = found, next_offset, is_name_lost


class _Header(NamedTuple):
    """A member, where its own header is, and the end of its padded contents."""

    member: Member
    offset: int
    end: int


def printable(name: str) -> str:
    """A name without what a terminal or a line of a log would not show as it is."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def scan(tar: Contents, is_deep: bool = False) -> Scan:
    """Every member and every damaged place of a tar, in one pass that reads headers alone, unless it is damaged.

    is_deep: whether contents are read too, to find members whose wrong size makes them swallow the next ones.
    """
    found = Scan()
    offset = part = zeros = 0
    while offset < tar.size:
        zeros = _zeros(tar, offset)
        if not zeros:
            offset = _take(tar, offset, found, is_deep)
        elif offset + zeros >= tar.size:
            break
        elif _is_joined(tar, part, offset, zeros):
            offset = part = offset + zeros
            found.doubts.append(f"another tar from byte {part} on")
        else:
            found.damages.append(Damage(offset, f"{zeros} bytes of zeros where a header should be", ""))
            offset = _resume(tar, offset + zeros, offset + zeros, found, False)
    if not tar.size:
        found.damages.append(Damage(0, "an empty file", ""))
    elif zeros == tar.size and (zeros < 2 * BLOCK or zeros % BLOCK):
        found.damages.append(Damage(0, f"{zeros} bytes of zeros", ""))
    elif not found.members:
        found.doubts.append("no member")
    elif zeros < 2 * BLOCK or tar.size % BLOCK:
        found.doubts.append("no end")
    return found


def _is_joined(tar: Contents, part: int, offset: int, zeros: int) -> bool:
    """Whether one tar that begins at byte `part` ends in these zeros, and another one follows, as `cat` joins them.
    Any other gap was written over."""
    end = offset + zeros
    return zeros >= 2 * BLOCK and (end - part) % _RECORD == 0 and _has_checksum(tar.read(end, BLOCK))


def _take(tar: Contents, offset: int, found: Scan, is_deep: bool) -> int:
    """Add the member whose header is at `offset`, or the damage there; returns where to go on."""
    try:
        header = _header(tar, offset, {})
    except _DamagedError as error:
        found.damages.append(Damage(offset, error.found, ""))
        return _resume(tar, offset, error.next_offset, found, error.is_name_lost)
    name, start, size, _, _ = header.member
    inner = _inner_header(tar, header.member) if is_deep else None
    is_end_right = start + size <= tar.size and _follows(tar, header.end)
    if start + size > tar.size:
        problem = f"{size} bytes of contents, of which {max(0, tar.size - start)} are there"
    elif inner is not None:
        problem = f"contents of {size} bytes, in which the header of another member stands at byte {inner}"
    elif tar.read(start + size, header.end - start - size).strip(b"\0"):
        problem = f"contents of {size} bytes that are padded with something else than zeros"
    elif not is_end_right:
        problem = f"contents of {size} bytes, after which no header follows at byte {header.end}"
    else:
        found.members.append(header.member)
        return header.end
    found.damages.append(Damage(offset, problem, name))
    if is_end_right and inner is None:
        return header.end
    # Its size may be wrong, so others may stand in what it claims as contents.
    return _resume(tar, header.offset + BLOCK, header.offset + BLOCK, found, False)


def _inner_header(tar: Contents, member: Member) -> int | None:
    """Where the first header within the contents of a member is, unless it is a tar itself."""
    start, end = member.offset, min(member.offset + member.size, tar.size)
    first = next((at for at in _headers(tar, start, end) if (at - start) % BLOCK == 0), start)
    return first if first > start else None


def _zeros(tar: Contents, offset: int) -> int:
    """How many zeros follow, in whole blocks unless they reach to the end of the file."""
    at = offset
    while at < tar.size:
        data = tar.read(at, BLOCK if at == offset else _SEARCH_BYTES)
        rest = data.lstrip(b"\0")
        if rest or not data:
            return (at - offset + len(data) - len(rest)) // BLOCK * BLOCK
        at += len(data)
    return at - offset


def _header(tar: Contents, offset: int, extended: Mapping[str, bytes]) -> _Header:
    """The member whose header, or whose extended header, is at an offset."""
    while True:
        block = tar.read(offset, BLOCK)
        _check(block, offset)
        size = _number(block[124:136], offset)
        kind, contents = block[156:157], offset + BLOCK
        end = contents + -(-size // BLOCK) * BLOCK
        if kind not in _EXTENDED:
            return _member(tar, block, offset, extended)
        if size > _MAX_EXTENDED_BYTES or end > tar.size:
            raise _DamagedError(f"an extended header of {size} bytes", contents, True)
        extended = {**extended, **_extension(kind, tar.read(contents, size), contents)}
        offset = end
        if _zeros(tar, offset) or offset >= tar.size:
            raise _DamagedError("an extended header without a member", offset)


def _check(block: bytes, offset: int) -> None:
    if len(block) < BLOCK:
        raise _DamagedError(f"{len(block)} bytes of a cut header", offset + BLOCK)
    if not _has_checksum(block):
        is_header = block[_MAGIC_AT:].startswith(_MAGIC)
        raise _DamagedError("a header with a wrong checksum" if is_header else "no header", offset + 1)


def _has_checksum(block: bytes) -> bool:
    """Whether this is a header by its checksum: the sum of all bytes, with blanks for those of the sum itself."""
    octal = _OCTAL.fullmatch(block[148:156])
    if len(block) < BLOCK or octal is None or not octal[1]:
        return False
    rest = block[:148] + block[156:]
    total = sum(rest) + 8 * 32
    # Some old programs took bytes as signed.
    signed = total if rest.isascii() else total - 256 * sum(byte > 127 for byte in rest)
    return int(octal[1], 8) in (total, signed)


def _number(data: bytes, offset: int) -> int:
    """A number in octal digits, or in base 256 if the first bit is set."""
    if data[0] == 0x80:
        return int.from_bytes(data[1:])
    octal = _OCTAL.fullmatch(data)
    if octal is None:
        raise _DamagedError(f"a header with the size {data!r}", offset + BLOCK)
    return int(octal[1] or b"0", 8)


def _extension(kind: bytes, data: bytes, offset: int) -> Mapping[str, bytes]:
    """What an extended header says of the member after it. Those for all members say nothing that we need."""
    if kind in (b"L", b"K"):
        if b"\0" in data.rstrip(b"\0"):
            raise _DamagedError(f"an extended header of {len(data)} bytes that holds more than a name", offset, True)
        return {"path" if kind == b"L" else "linkpath": data.rstrip(b"\0")}
    found: dict[str, bytes] = {}
    at = 0
    while data[at:].strip(b"\0"):
        record = _PAX_RECORD.match(data, at)
        end = at + int(record[1]) if record else at
        if record is None or not record.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise _DamagedError(f"a damaged extended header, {data[at : at + 20]!r}", offset, True)
        found[record[2].decode("utf-8", "replace")] = data[record.end() : end - 1]
        at = end
    return {} if kind == b"g" else found


def _member(tar: Contents, block: bytes, offset: int, extended: Mapping[str, bytes]) -> _Header:
    kind: Kind = _KINDS.get(block[156:157], "member of unknown type")
    name = extended.get("path") or _name(block)
    size = _number(block[124:136], offset)
    if "size" in extended:
        if not re.fullmatch(rb"\d{1,20}", extended["size"]):
            raise _DamagedError(f"a header with the size {extended['size']!r}", offset + BLOCK)
        size = int(extended["size"])
    contents = offset + BLOCK
    if any(key.startswith("GNU.sparse") for key in extended):
        kind = "sparse file"
    elif kind == "sparse file":
        contents = _after_sparse_map(tar, block, contents)
    if kind == "file" and name.endswith(b"/"):
        kind = "folder"
    if len(name) > _MAX_NAME_BYTES or not name:
        raise _DamagedError(f"a name of {len(name)} bytes", offset + BLOCK)
    # Links, devices and folders have no contents, whatever their size says.
    size = size if kind in ("file", "sparse file", "member of unknown type") else 0
    link = _text(extended.get("linkpath") or block[157:257].split(b"\0")[0])
    return _Header(Member(_text(name), contents, size, kind, link), offset, contents + -(-size // BLOCK) * BLOCK)


def _name(block: bytes) -> bytes:
    name, prefix = (block[start:end].split(b"\0")[0] for start, end in ((0, 100), (345, 500)))
    is_posix = block[_MAGIC_AT : _MAGIC_AT + 6] == _MAGIC + b"\0"
    return prefix + b"/" + name if is_posix and prefix else name


def _after_sparse_map(tar: Contents, block: bytes, offset: int) -> int:
    """Where the contents of an old sparse file of GNU begin: after the blocks that go on with its map."""
    is_continued = block[482:483] not in (b"", b"\0")
    while is_continued and offset < tar.size:
        is_continued = tar.read(offset, BLOCK)[504:505] not in (b"", b"\0")
        offset += BLOCK
    return offset


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _follows(tar: Contents, offset: int) -> bool:
    """Whether a header, even a damaged or cut one, zeros or the end of the file are where contents end."""
    block = tar.read(offset, BLOCK)
    return len(block) < BLOCK or not block.strip(b"\0") or block[_MAGIC_AT:].startswith(_MAGIC) or _has_checksum(block)


def _resume(tar: Contents, gap: int, first: int, found: Scan, is_name_lost: bool) -> int:
    """Where to go on after a damaged place that began at byte `gap`: at the next header from byte `first` on.

    A header that may have lost the extended header before it is passed over, since its name would be wrong.
    """
    for offset in _headers(tar, first, tar.size):
        block = tar.read(offset, BLOCK)
        before = tar.read(max(gap, offset - BLOCK), min(BLOCK, offset - gap))
        # Names of 100 bytes may be cut; Python writes "?" for what the extended header says in full.
        is_name_short = b"\0" in block[:100] and b"?" not in block[:100]
        is_trusted = is_name_short and not is_name_lost and _PAX_RECORD.match(before) is None
        if is_trusted or block[156:157] in _EXTENDED:
            return offset
        found.damages.append(Damage(offset, "a header whose name stood in a damaged extended header", ""))
        gap, is_name_lost = offset + BLOCK, False
    return tar.size


def _headers(tar: Contents, start: int, end: int) -> Iterator[int]:
    """Every place, at any byte, where there is a header with the right checksum."""
    for at in range(start, end, _SEARCH_BYTES):
        data = tar.read(at, min(_SEARCH_BYTES + BLOCK, end - at))
        place = data.find(_MAGIC, _MAGIC_AT)
        while 0 <= place < _SEARCH_BYTES + _MAGIC_AT:
            if _has_checksum(data[place - _MAGIC_AT : place - _MAGIC_AT + BLOCK]):
                yield at + place - _MAGIC_AT
            place = data.find(_MAGIC, place + 1)
