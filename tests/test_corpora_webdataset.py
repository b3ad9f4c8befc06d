import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.core.errors import ConfigError, IntegrityError
from ldm.corpora import webdataset
from ldm.corpora.files import Files
from ldm.corpora.pairs import Pair, Rejected, Rejection
from ldm.corpora.user_params import WebdatasetParams
from tests.corpora import CAPTIONS, PIXELS

PARAMS = WebdatasetParams(kind="webdataset", directory=".", pixels=PIXELS, captions=CAPTIONS, val_fraction=0.3, seed=0)


def _image(colour: str = "red", suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(stream, suffix)
    return stream.getvalue()


def _member(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def _special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def _tar(path: Path, *members: tuple[str, bytes] | tuple[tarfile.TarInfo, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for head, data in members:
            info = head if isinstance(head, tarfile.TarInfo) else _member(head, data)[0]
            tar.addfile(info, io.BytesIO(data))
    return path


def _read(root: Path) -> list[Pair | Rejection]:
    return [item for unit in webdataset.units(PARAMS, 16, Files(root)) for item in unit.items()]


def _rejected(root: Path) -> list[tuple[str, str]]:
    return [(item.reason, item.source["key"]) for item in _read(root) if isinstance(item, Rejection)]


GOOD = (("000.png", _image()), ("000.txt", b"a caption"))


def test_samples_of_all_tars_in_order(tmp_path):
    facts = {"caption": "ignored", "url": "https://example.org/1", "status": "success"}
    _tar(
        tmp_path / "00001.tar",
        *(("a.jpg", _image("blue", "JPEG")), ("a.txt", b"a blue  thing\n"), ("a.json", json.dumps(facts).encode())),
        *(("b.PNG", _image("red")), ("b.json", b'{"caption": "a red thing"}'), ("b.npy", b"not read")),
    )
    _tar(tmp_path / "00000.tar", ("sub/a.webp", _image("lime", "WEBP")), ("sub/a.txt", b"green"))
    (tmp_path / "00000_stats.json").write_text("{}")
    pairs = _read(tmp_path)
    assert [pair.captions for pair in pairs] == [["green"], ["a blue thing"], ["a red thing"]]
    assert [pair.key for pair in pairs][1:] == ["00001-a", "00001-b"]
    assert pairs[1].source == {"corpus": "webdataset", "tar": "00001.tar", "key": "a", "url": "https://example.org/1"}
    for pair, colour in zip(pairs, [(0, 255, 0), (0, 0, 255), (255, 0, 0)], strict=True):
        assert np.abs(pair.image().astype(int) - colour).max() <= 4


def test_interleaved_samples_are_put_together(tmp_path):
    _tar(tmp_path / "0.tar", ("a.png", _image()), ("b.png", _image()), ("b.txt", b"second"), ("a.txt", b"first"))
    assert [(pair.key, pair.captions) for pair in _read(tmp_path)] == [("0-a", ["first"]), ("0-b", ["second"])]


def test_tars_that_repeat_keys_hold_different_samples(tmp_path):
    _tar(tmp_path / "0.tar", *GOOD)
    _tar(tmp_path / "1.tar", *GOOD)
    assert [pair.key for pair in _read(tmp_path)] == ["0-000", "1-000"]


CASES = {
    "MISSING_IMAGE": (("x.txt", b"a caption"),),
    "MISSING_CAPTION": (("x.png", _image()),),
    "EMPTY_CAPTION": (("x.png", _image()), ("x.txt", b" ")),
    "NOT_UTF8": (("x.png", _image()), ("x.txt", b"caf\xe9")),
    "TWO_IMAGES": (("x.png", _image()), ("x.jpg", _image()), ("x.txt", b"a caption")),
    "BAD_JSON": (("x.png", _image()), ("x.json", b'{"caption": ')),
    "TOO_MANY_BYTES": (("x.png", _image()), ("x.txt", b"x" * 100_001)),
}


@pytest.mark.parametrize("reason", CASES)
def test_unfit_samples_are_rejected_and_others_stay(tmp_path, reason):
    _tar(tmp_path / "0.tar", *GOOD, *CASES[reason], ("y.png", _image()), ("y.txt", b"a caption"))
    assert _rejected(tmp_path) == [(reason, "x")]
    assert [item.key for item in _read(tmp_path) if isinstance(item, Pair)] == ["0-000", "0-y"]


@pytest.mark.parametrize("text", [b"[]", b"3", b'{"caption": 3}', b"[" * 50_000])
def test_json_without_a_caption(tmp_path, text):
    _tar(tmp_path / "0.tar", ("x.png", _image()), ("x.json", text))
    assert _rejected(tmp_path) in ([("BAD_JSON", "x")], [("MISSING_CAPTION", "x")])


@pytest.mark.parametrize(
    ("reason", "member"),
    [
        ("BAD_NAME", _member("no_suffix", b"")),
        ("BAD_NAME", _member("__meta__.txt", b"")),
        ("BAD_NAME", _member("sub/.hidden.png", b"")),
        ("UNSAFE_PATH", _member("../x.png", b"")),
        ("UNSAFE_PATH", _member("/etc/x.png", b"")),
        ("BAD_TYPE", _special("x.png", tarfile.SYMTYPE, "/etc/passwd")),
        ("BAD_TYPE", _special("x.png", tarfile.LNKTYPE, "000.png")),
        ("BAD_TYPE", _special("x.png", tarfile.CHRTYPE)),
        ("DUPLICATE_MEMBER", _member("000.png", _image("blue"))),
        ("DUPLICATE_MEMBER", _member("000.PNG", _image("blue"))),
    ],
)
def test_strange_members_are_rejected_and_their_neighbours_stay(tmp_path, reason, member):
    _tar(tmp_path / "0.tar", *GOOD, member, _special("folder", tarfile.DIRTYPE))
    rejection, pair = _read(tmp_path)
    assert (rejection.reason, rejection.source["key"]) == (reason, member[0].name)
    assert pair.key == "0-000" and (pair.image() == (255, 0, 0)).all(), "of duplicates the first counts"


def test_long_and_foreign_names_are_read(tmp_path):
    name = "\u00e4" * 120
    _tar(tmp_path / "0.tar", (f"{name}.png", _image()), (f"{name}.txt", b"a caption"))
    (pair,) = _read(tmp_path)
    assert pair.source["key"] == name and (pair.image() == (255, 0, 0)).all()


def test_an_image_that_does_not_decode_is_told_when_it_is_made(tmp_path):
    _tar(tmp_path / "0.tar", ("x.jpg", b"<html>"), ("x.txt", b"a caption"))
    (pair,) = _read(tmp_path)
    with pytest.raises(Rejected, match="NOT_IMAGE"):
        pair.image()


def test_a_cut_tar_is_refused_wherever_it_is_cut(tmp_path):
    path = _tar(tmp_path / "0.tar", *GOOD, ("y.png", _image()), ("y.txt", b"a caption"))
    good = path.read_bytes()
    end = len(good.rstrip(b"\0")) // 512 * 512 + 512
    for size in (*range(0, end + 1, 256), end + 512, end + 1024 + 100):
        path.write_bytes(good[:size])
        with pytest.raises(IntegrityError, match=r"0\.tar: .*expected a whole"):
            _read(tmp_path)
    path.write_bytes(good[: end + 1024])
    assert len(_read(tmp_path)) == 2


def test_a_damaged_header_is_refused_where_tarfile_ends_without_a_word(tmp_path):
    path = _tar(tmp_path / "0.tar", *GOOD, ("y.png", _image()), ("y.txt", b"a caption"))
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    good = path.read_bytes()
    for bad in (good[:third] + b"X" + good[third + 1 :], good[:third] + bytes(512) + good[third + 512 :]):
        path.write_bytes(bad)
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) == 2, "the reason for the check"
        with pytest.raises(IntegrityError, match=f"from byte {third} on, after 2 members"):
            _read(tmp_path)


def test_mutated_tars_are_refused_or_read_and_nothing_else(tmp_path):
    path = _tar(
        tmp_path / "0.tar", *[(f"{i}.{s}", _image() if s == "png" else b"hi") for i in range(4) for s in ("png", "txt")]
    )
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(good)
        at = int(rng.integers(len(bad) // 512)) * 512 + int(rng.integers(160))
        bad[at : at + int(rng.integers(1, 20))] = rng.bytes(int(rng.integers(20)))
        path.write_bytes(bad)
        try:
            for item in _read(tmp_path):
                if isinstance(item, Pair):
                    item.image()
        except (IntegrityError, Rejected):
            continue


def test_a_folder_without_a_tar_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no \*\.tar in it"):
        _read(tmp_path)
