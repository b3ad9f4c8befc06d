"""The bytes of a tar among a user's files, read at any offset: of a plain one, or of one that gzip has packed."""

import zlib
from bisect import bisect_right
from typing import Any, NamedTuple

from ldm.corpora.files import Files
from ldm.corpora.pairs import Rejected
from ldm.corpora.tars import Contents, Damage, Scan, scan

_WINDOW_BYTES = 1 << 14
_CHUNK_BYTES = 1 << 20
_BETWEEN_MARKS_BYTES = 1 << 24
_MAX_RATIO, _ALWAYS_ALLOWED_BYTES = 100, 1 << 26
_GZIP = 31
"""zlib's name for gzip with a window of 32 KiB."""
_PACKERS = {
    **{b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"},
    **{b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z", b"Rar!": "rar"},
}
"""First bytes of packed files."""


def look(files: Files, name: str, size: int, is_deep: bool = False) -> tuple[Contents, Scan]:
    """A tar, plain or packed by gzip as its name says, and what can be read of it. Whatever is wrong with it, even that
    it cannot be opened, is in the scan. is_deep: as `scan` has it."""
    suffix = name.lower().rpartition(".")[2]
    if suffix not in ("tar", "gz", "tgz"):
        return Plain(files, name, 0), Scan([], [Damage(0, f"packed as {suffix}, which is not read", "")])
    try:
        first = files.read(name, 0, 8)
        tar = Plain(files, name, size) if suffix == "tar" else Gzip(files, name, size)
        found = scan(tar, is_deep)
        packer = next((name for magic, name in _PACKERS.items() if first.startswith(magic)), "")
    except Rejected as error:
        return Plain(files, name, 0), Scan([], [Damage(0, f"it cannot be read: {error.detail}", "")])
    if isinstance(tar, Gzip):
        return tar, _distrusted(tar, found)
    if packer and not found.members:
        return tar, Scan([], [Damage(0, f"a file that {packer} has packed, and that is not named so", "")])
    return tar, found


def _distrusted(tar: "Gzip", found: Scan) -> Scan:
    """What is left of a scan if the stream of gzip is cut or damaged."""
    if tar.fault:
        lost = [Damage(member.offset, "in a damaged gzip stream", member.name) for member in found.members]
        return Scan([], [Damage(0, tar.fault, ""), *lost, *found.damages])
    cut = [Damage(tar.size, "the gzip stream is cut", "")] if tar.is_cut else []
    return Scan(found.members, [*found.damages, *cut], found.doubts)


class Plain:
    """A tar as it is. Headers are small and often near each other, so some more bytes are read at a time."""

    def __init__(self, files: Files, name: str, size: int) -> None:
        self._files, self._name, self.size = files, name, size
        self._start, self._window = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from an offset on; fewer at the end. Rejected: UNREADABLE."""
        at, size = offset - self._start, max(0, min(size, self.size - offset))
        if not 0 <= at <= at + size <= len(self._window):
            self._window = self._files.read(self._name, offset, max(size, _WINDOW_BYTES))
            self._start, at = offset, 0
        return self._window[at : at + size]


class _Mark(NamedTuple):
    """A place from which unpacking can go on."""

    offset: int
    """In the unpacked bytes."""
    packed_offset: int
    unpacker: Any
    """A `zlib.decompressobj` that is only ever copied."""


class Gzip:
    """A tar that gzip has packed. All of it is unpacked once, to check it, and to set marks that reading can start at:
    one of about 50 kB per 16 MiB."""

    def __init__(self, files: Files, name: str, packed_size: int) -> None:
        """Rejected: UNREADABLE."""
        self._files, self._name = files, name
        self._marks: list[_Mark] = [_Mark(0, 0, zlib.decompressobj(_GZIP))]
        self._go_to(0)
        self.fault = ""
        """Why no byte of it can be trusted, or empty."""
        try:
            self._unpack_all(max(_ALWAYS_ALLOWED_BYTES, _MAX_RATIO * packed_size))
        except zlib.error as error:
            self.fault = f"a damaged gzip stream: {error}"
        self.size = self._end
        """Of the unpacked bytes."""
        self.is_cut = not self._unpacker.eof
        """Whether its end is missing; the bytes before that can be read."""

    def read(self, offset: int, size: int) -> bytes:
        """Unpacked bytes from an offset on; fewer at the end. Rejected: UNREADABLE."""
        end = min(offset + size, self.size)
        if not self._start <= offset <= self._end + _BETWEEN_MARKS_BYTES:
            self._go_to(offset)
        while self._end < end:
            chunk = self._next()
            self._window = self._window[max(0, offset - self._start) :] + chunk
            self._end += len(chunk)
            self._start = self._end - len(self._window)
        return self._window[offset - self._start : max(offset, end) - self._start]

    def _go_to(self, offset: int) -> None:
        """Get ready to unpack from the last mark before an offset on."""
        mark = self._marks[bisect_right(self._marks, offset, key=lambda mark: mark.offset) - 1]
        self._unpacker, self._packed_offset = mark.unpacker.copy(), mark.packed_offset
        self._start = self._end = mark.offset
        self._packed = self._window = b""

    def _unpack_all(self, limit: int) -> None:
        while chunk := self._next():
            self._end += len(chunk)
            if self._end > limit:
                self.fault = f"a bomb: it unpacks to more than {limit} bytes"
                return
            if self._end - self._marks[-1].offset >= _BETWEEN_MARKS_BYTES:
                packed_offset = self._packed_offset - len(self._packed)
                self._marks.append(_Mark(self._end, packed_offset, self._unpacker.copy()))
        self._start = self._end

    def _next(self) -> bytes:
        """The next unpacked bytes, at most 1 MiB; empty at the end. zlib.error: damage."""
        while True:
            if not self._packed:
                self._packed = self._files.read(self._name, self._packed_offset, _CHUNK_BYTES)
                self._packed_offset += len(self._packed)
            is_end = not self._packed
            if not self._unpacker.eof:
                chunk = self._unpacker.decompress(self._packed, _CHUNK_BYTES)
                self._packed = self._unpacker.unconsumed_tail or self._unpacker.unused_data
                if chunk or is_end:
                    return chunk
            elif is_end:
                return b""
            else:
                # Several gzip files in a row are one; zeros may stand between and after them.
                self._packed = self._packed.lstrip(b"\0")
                self._unpacker = zlib.decompressobj(_GZIP) if self._packed else self._unpacker
