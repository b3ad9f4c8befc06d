import argparse
import gzip
import io
import tarfile

import pytest

from ldm.core.errors import ConfigError
from ldm.tools import cli, salvage
from ldm.tools.cli import salvage as commands


def _bytes() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in (("a.txt", b"one"), ("b\x1b[31m.txt", b"three"), ("c.txt", b"five!")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("d.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
        tar.addfile(link)
    return stream.getvalue()


def test_members_and_damages_are_listed_in_the_order_of_the_bytes(tmp_path, capsys):
    data = bytearray(_bytes())
    data[2048 + 3] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    assert cli.main(["salvage", str(tmp_path / "a.tar")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "         512            3 a.txt",
        "        1536            5 b\\x1b[31m.txt",
        "        2048      DAMAGED a header with a wrong checksum",
        "        3584            0 d.txt (symbolic link to a.txt)",
        "3 members of 8 bytes are whole, 1 places damaged",
    ]


def test_a_cut_packed_tar_is_listed(tmp_path):
    packed = gzip.compress(_bytes())
    (tmp_path / "a.tar.gz").write_bytes(packed[: len(packed) // 2])
    *_, damage, last = salvage.lines(str(tmp_path / "a.tar.gz"))
    assert "DAMAGED the gzip stream is cut" in damage and last.endswith("2 places damaged; no member")


def test_no_such_file_is_refused(tmp_path):
    options = argparse.Namespace(tar=str(tmp_path / "a.tar"))
    with pytest.raises(ConfigError, match=r"a\.tar: no such file"):
        commands._salvage(options)
