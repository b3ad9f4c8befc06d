"""Tars of samples, and damage done to them: what `tests/reliability/tars.py` tries thousands of times."""

import io
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

BLOCK = 512
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
Piece = tuple[int, int] | bytes
"""A range of the bytes of the original, or other bytes."""


@dataclass(frozen=True)
class Original:
    """A whole tar and what is in it."""

    data: bytes
    pixels: dict[str, np.ndarray]
    """By key."""
    captions: dict[str, str]
    ranges: list[tuple[str, int, int]]
    """Key, first byte of the header, and end of the padded contents of each member."""


def original(draw: random.Random, num_samples: int = 8) -> Original:
    """A tar with members in a random order and names of many kinds, as PNG and text."""
    kind = draw.choice(FORMATS)
    names = [f"{i:03d}" for i in range(num_samples)]
    if kind != tarfile.USTAR_FORMAT:
        names[1], names[2], names[3] = "d" * 120 + "/long", "été/🐈", "n" * 96
    pixels = {key: np.frombuffer(draw.randbytes(16 * 16 * 3), np.uint8).reshape(16, 16, 3) for key in names}
    captions = {key: f"caption {draw.randrange(10**6)} of sample {i}" for i, key in enumerate(names)}
    members = [(f"{key}.png", png(pixels[key])) for key in names] + [
        (f"{k}.txt", t.encode()) for k, t in captions.items()
    ]
    members.sort(key=lambda member: member[0]) if draw.random() < 0.8 else draw.shuffle(members)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = stream.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
    ends = [info.offset_data + -(-info.size // BLOCK) * BLOCK for info in infos]
    ranges = [(info.name.rpartition(".")[0], info.offset, end) for info, end in zip(infos, ends, strict=True)]
    return Original(data, pixels, captions, ranges)


def png(pixels: np.ndarray) -> bytes:
    """Pixels as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _flip(draw: random.Random, data: bytes) -> list[Piece]:
    at = draw.randrange(len(data))
    return [(0, at), bytes([data[at] ^ 1 << draw.randrange(8)]), (at + 1, len(data))]


def _overwrite(draw: random.Random, data: bytes) -> list[Piece]:
    at = draw.randrange(len(data))
    end = min(len(data), at + draw.choice((1, 20, 700, 5000)))
    return [(0, at), draw.randbytes(end - at), (end, len(data))]


def _cut(draw: random.Random, data: bytes) -> list[Piece]:
    return [(0, draw.randrange(len(data)))]


def _behead(draw: random.Random, data: bytes) -> list[Piece]:
    return [(draw.randrange(len(data)), len(data))]


def _remove(draw: random.Random, data: bytes) -> list[Piece]:
    at = draw.randrange(len(data))
    return [(0, at), (min(len(data), at + draw.randrange(1, 3000)), len(data))]


def _splice(draw: random.Random, data: bytes) -> list[Piece]:
    at = draw.randrange(len(data))
    return [(0, at), draw.randbytes(draw.choice((1, 100, 512, 1500))), (at, len(data))]


def _reorder(draw: random.Random, data: bytes) -> list[Piece]:
    a, b, c = sorted(draw.sample(range(0, len(data), draw.choice((1, BLOCK)) if len(data) > 4 * BLOCK else 1), 3))
    return [(0, a), (b, c), (a, b), (c, len(data))]


def _duplicate(draw: random.Random, data: bytes) -> list[Piece]:
    start = draw.randrange(0, len(data), BLOCK)
    end = min(len(data), start + BLOCK * draw.choice((1, 2, 5)))
    return [(0, end), (start, len(data))]


def _zero(draw: random.Random, data: bytes) -> list[Piece]:
    start = draw.randrange(0, len(data), BLOCK)
    end = min(len(data), start + BLOCK * draw.choice((1, 1, 2, 8)))
    return [(0, start), bytes(end - start), (end, len(data))]


def _headers(data: bytes) -> list[int]:
    return [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]


def _edit_header(draw: random.Random, data: bytes) -> list[Piece]:
    """A field of a header is another one; its checksum is right."""
    at = draw.choice(_headers(data))
    header = bytearray(data[at : at + BLOCK])
    start, end = draw.choice(
        ((0, 100), (100, 108), (124, 136), (124, 136), (136, 148), (156, 157), (157, 257), (345, 500))
    )
    wrong = [
        *(b"%011o\0" % draw.choice((0, 1, 7, 511, 512, 513, 10**6, 8**11 - 1)), b"-0000000001\0", b"\xff" * 12),
        *(
            b"\x80" + draw.randbytes(11),
            b"\x80" + bytes(9) + draw.randbytes(2),
            b"\xff" * 10 + b"\xfe\x00",
            b"99999999999\0",
        ),
    ]
    new = draw.choice(wrong) if (start, end) == (124, 136) else draw.randbytes(end - start)
    header[start:end] = (
        new if (start, end) != (156, 157) else draw.choice((b"5", b"1", b"2", b"L", b"x", b"g", b"S", b"Z"))
    )
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 256)
    return [(0, at), bytes(header), (at + BLOCK, len(data))]


KINDS: dict[str, Callable[[random.Random, bytes], list[Piece]]] = {
    "flip": _flip,
    "overwrite": _overwrite,
    "cut": _cut,
    "behead": _behead,
    "remove": _remove,
    "splice": _splice,
    "reorder": _reorder,
    "duplicate": _duplicate,
    "zero": _zero,
    "header": _edit_header,
}


def mutate(draw: random.Random, kind: str, data: bytes) -> tuple[bytes, list[Piece]]:
    """Damaged bytes, and the pieces that they are made of."""
    pieces = KINDS[kind](draw, data)
    return b"".join(data[p[0] : p[1]] if isinstance(p, tuple) else p for p in pieces), pieces


def untouched(whole: Original, pieces: list[Piece]) -> set[str]:
    """Keys of the samples of which every byte, with the headers, is still there, in one piece and only once."""
    ranges = [piece for piece in pieces if isinstance(piece, tuple)]
    kept = {
        (start, end)
        for _, start, end in whole.ranges
        if any(a <= start and end <= b for a, b in ranges) and sum(a < end and start < b for a, b in ranges) == 1
    }
    return set(whole.pixels) - {key for key, start, end in whole.ranges if (start, end) not in kept}
