"""Tars made to harm whoever reads them; `python -m tests.malicious FOLDER` reads each there under an audit hook."""

import gzip
import io
import json
import pickle
import struct
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

_BLOCK = 512
_FORBIDDEN = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "pty.", "pickle.", "marshal.", "urllib.", "http.")
_FORBIDDEN_ALONE = ("import", "exec", "compile", "open", "tempfile.mkstemp", "tempfile.mkdtemp", "webbrowser.open")
_ALLOWED = ("os.walk", "os.scandir", "os.listdir", "os.fspath")


class Trap:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch pwned",)


def png(colour: str = "red", side: int = 20) -> bytes:
    """A picture."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


def header(name: bytes, size: bytes = b"%011o\0" % 3, kind: bytes = b"0", link: bytes = b"") -> bytes:
    """A header of any fields, with the right checksum."""
    block = bytearray(_BLOCK)
    block[0 : len(name[:100])], block[124:136], block[156:157] = name[:100], size, kind
    block[157 : 157 + len(link)], block[257:265] = link, b"ustar\x0000"
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    return bytes(block)


def padded(content: bytes) -> bytes:
    """Contents in whole blocks."""
    return content + bytes(-len(content) % _BLOCK)


def plain(*files: tuple[str, bytes]) -> bytes:
    """A tar of files."""
    return b"".join(header(name.encode(), b"%011o\0" % len(data)) + padded(data) for name, data in files) + bytes(1024)


def special(name: str, kind: bytes, link: str = "") -> bytes:
    """A tar of a link or device, with a caption beside it."""
    head = header(name.encode(), b"%011o\0" % 0, kind, link.encode())
    return head + plain((name.rpartition(".")[0] + ".txt", b"a caption"))


def pax(records: bytes) -> bytes:
    """A tar of a file with an extended header."""
    return header(b"x", b"%011o\0" % len(records), b"x") + padded(records) + plain(("a.png", png()), ("a.txt", b"x"))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb_png(side: int) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _gif(text: bytes) -> bytes:
    return b"GIF89a/*" + bytes(10) + text


@cache
def inputs() -> dict[str, tuple[str, bytes]]:
    """Name of the file and bytes, by what they try."""
    trap, text = pickle.dumps(Trap()), ("a.txt", b"a caption")
    traversal = ("../a.png", "/etc/a.png", "a/../../b.png", "..", "./../a.png", "..\\a.png", "C:\\a.png", "~/a.png")
    found = {f"name {name}": ("0.tar", plain((name, png()), text)) for name in traversal}
    links = ((b"2", "/etc/passwd"), (b"1", "/etc/shadow"), (b"2", "../../secret"), (b"1", "a.png"))
    found |= {f"link to {link}": ("0.tar", special("a.png", kind, link)) for kind, link in links}
    found |= {f"type {kind}": ("0.tar", special("a.png", kind.encode())) for kind in "3467SVM"}
    found |= {f"pickle as {part}": ("0.tar", plain((f"a.{part}", trap), text)) for part in ("png", "jpg", "json")}
    found |= {
        f"pickle unread as {part}": ("0.tar", plain((f"a.{part}", trap), ("a.png", png()), text))
        for part in ("pyd", "pth", "npy", "pickle", "py")
    }
    found |= {
        "bomb of pixels": ("0.tar", plain(("a.png", _bomb_png(60_000)), text)),
        "bomb of a png": ("0.tar", plain(("a.png", _bomb_png(900)), text)),
        "bomb of text in a png": ("0.tar", plain(("a.png", _text_bomb()), text)),
        "bomb of gzip": ("0.tar.gz", gzip.compress(bytes(80 << 20))),
        "bomb of json": ("0.tar", plain(("a.png", png()), ("a.json", b"[" * 90_000))),
        "json of digits": ("0.tar", plain(("a.png", png()), ("a.json", b'{"caption": ' + b"9" * 90_000 + b"}"))),
        "gif, jar and script": ("0.tar", plain(("a.png", _gif(b"<script>alert(1)</script>PK\x05\x06")), text)),
        "png and tar": ("0.tar", plain(("a.png", png() + plain(("b.png", png()), ("b.txt", b"inner"))), text)),
        "svg": ("0.tar", plain(("a.png", b'<svg><image href="http://192.0.2.1/x"/></svg>'), text)),
        "postscript": ("0.tar", plain(("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run"), text)),
        "url in json": (
            "0.tar",
            plain(("a.png", png()), ("a.json", json.dumps({"url": "http://192.0.2.1/"}).encode())),
        ),
        "size of minus 512": ("0.tar", header(b"a.png", b"\xff" * 10 + b"\xfe\x00") + plain(text)),
        "size of minus 1": ("0.tar", header(b"a.png", b"\xff" * 12) + plain(text)),
        "size of 2 to the 87": ("0.tar", header(b"a.png", b"\x80\x7f" + b"\xff" * 10) + plain(text)),
        "pax size of minus 512": ("0.tar", pax(b"13 size=-512\n")),
        "pax size that is long": ("0.tar", pax(b"2013 size=" + b"9" * 2002 + b"\n")),
        "pax path of a megabyte": ("0.tar", pax(b"1000013 path=" + b"n" * 999_999 + b"\n")),
        "pax path with traversal": ("0.tar", pax(b"24 path=../../../../b.png\n".replace(b"24", b"26"))),
        "pax length of nothing": ("0.tar", pax(b"0 path=a\n")),
        "pax sparse map": ("0.tar", pax(b"22 GNU.sparse.major=1\n")),
        "huge GNU name": ("0.tar", header(b"L", b"77777777777\0", b"L") + plain(text)),
        "names of a terminal": ("0.tar", plain(("\x1b]0;x\x07.png", png()), ("\r\x1b[2K.txt", b"x"))),
        "caption of a terminal": ("0.tar", plain(("a.png", png()), ("a.txt", b"\x1b[31mred\x1b]52;c;eA==\x07"))),
        "ten thousand links in a row": ("0.tar", _chain()),
    }
    return found


def _text_bomb() -> bytes:
    whole, packed = png(), zlib.compress(bytes(50_000_000))
    return whole[:33] + chunk(b"zTXt", b"Comment\0\0" + packed) + whole[33:]


def _chain() -> bytes:
    links = [header(b"%d.png" % i, b"%011o\0" % 0, b"1", b"%d.png" % (i - 1)) for i in range(1, 10_000)]
    return header(b"0.png", b"%011o\0" % len(png())) + padded(png()) + b"".join(links) + bytes(1024)


def is_forbidden(event: str) -> bool:
    """Whether an audit event is one that reading never needs, or has to be looked at more closely."""
    return (event.startswith(_FORBIDDEN) or event in _FORBIDDEN_ALONE) and event not in _ALLOWED


def read(folder: Path, events: list[str]) -> Iterator[tuple[str, int, int, list[str]]]:
    """For each input: its name, pairs made, rejections, and the audit events that may not be."""
    from ldm.core.errors import IntegrityError
    from ldm.corpora import webdataset
    from ldm.corpora.files import Files
    from ldm.corpora.pairs import Pair, Rejected
    from tests.corpora import WEBDATASET

    params = WEBDATASET.model_copy(update={"damaged_tars": "salvage"})
    for place, name in enumerate(inputs()):
        counts, start = [0, 0], len(events)
        try:
            for unit in webdataset.units(params, 16, Files(folder / str(place))):
                for item in unit.items():
                    try:
                        is_made = isinstance(item, Pair) and callable(item.image) and item.image() is not None
                    except Rejected:
                        is_made = False
                    counts[not is_made] += 1
        except IntegrityError:
            counts[1] += 1
        yield name, counts[0], counts[1], events[start:]


def main(folder: Path) -> None:
    """Read everything once, so that all code is loaded; then again, under the hook; print what was seen."""
    for place, (name, data) in enumerate(inputs().values()):
        (folder / str(place)).mkdir(exist_ok=True)
        (folder / str(place) / name).write_bytes(data)
    list(read(folder, []))
    events: list[str] = []
    inside = str(folder.resolve())

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        is_bad = is_forbidden(event)
        if event == "open":
            path, mode = str(arguments[0]), arguments[1]
            is_bad = not (path.startswith(inside) and mode in ("r", "rb"))
        if is_bad:
            events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(watch)
    found = list(read(folder, events))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
