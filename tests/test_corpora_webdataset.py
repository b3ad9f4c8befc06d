"""Tars of users, in the conditions that public bug reports describe; each is named in a docstring."""

import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.core.errors import ConfigError, IntegrityError
from ldm.corpora import folder, remote, tar_samples, unpacked, webdataset
from ldm.corpora.files import Files
from ldm.corpora.pairs import Item, Litter, Pair, Rejected, Rejection, key_of
from ldm.corpora.tars import Damage, Member, Scan
from tests.corpora import CAPTIONS, FOLDER, WEBDATASET

TarMember = tuple[str | tarfile.TarInfo, bytes]
SALVAGE = {"damaged_tars": "salvage"}


def _image(colour: str = "red", suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(stream, suffix)
    return stream.getvalue()


def _special(name: str, kind: bytes, link: str = "") -> TarMember:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def _tar(path: Path, *members: TarMember, kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_bytes(*members, kind=kind))
    return path


def _bytes(*members: TarMember, kind: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for head, data in members:
            info = head if isinstance(head, tarfile.TarInfo) else tarfile.TarInfo(head)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _sample(key: str, colour: str = "red", caption: str = "a caption") -> tuple[TarMember, TarMember]:
    return (f"{key}.png", _image(colour)), (f"{key}.txt", caption.encode())


def _items(root: Path, **changes: object) -> list[Pair | Rejection]:
    return [item for item in _all(root, **changes) if not isinstance(item, Litter)]


def _all(root: Path, **changes: object) -> list[Item]:
    params = WEBDATASET.model_copy(update=changes)
    units = webdataset.units(params, 16, Files(root))
    return [item for unit in pickle.loads(pickle.dumps(units)) for item in unit.items()]


def _litter(root: Path, **changes: object) -> list[Mapping[str, int]]:
    return [item.counts for item in _all(root, **changes) if isinstance(item, Litter)]


def _taken(root: Path, **changes: object) -> list[str]:
    return [item.source["key"] for item in _items(root, **changes) if isinstance(item, Pair)]


def _captions(root: Path, **changes: object) -> dict[str, list[str]]:
    return {item.source["key"]: item.captions for item in _items(root, **changes) if isinstance(item, Pair)}


def _rejected(root: Path, **changes: object) -> list[tuple[str, str]]:
    return [(item.reason, item.source["key"]) for item in _items(root, **changes) if isinstance(item, Rejection)]


def _colour(pair: Pair | Rejection) -> tuple[int, ...]:
    assert isinstance(pair, Pair) and callable(pair.image)
    return tuple(pair.image().pixels[8, 8].tolist())


GOOD = _sample("000")
RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def test_samples_of_all_tars_in_order(tmp_path):
    facts = {"caption": "ignored", "url": "https://example.org/1\ud800", "status": "success"}
    _tar(
        tmp_path / "00001.tar",
        *(("b.PNG", _image("red")), ("b.json", b'{"caption": "a red thing"}'), ("b.npy", b"not read")),
        *(("a.jpg", _image("blue", "JPEG")), ("a.txt", b"a blue  thing\n"), ("a.json", json.dumps(facts).encode())),
    )
    _tar(tmp_path / "00000.tar", ("sub/a.webp", _image("lime", "WEBP")), ("sub/a.txt", b"green"))
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    pairs = _items(tmp_path)
    assert [pair.captions for pair in pairs] == [["green"], ["a blue thing"], ["a red thing"]]
    assert [pair.key for pair in pairs] == [key_of("00000//sub/a"), key_of("00001/a"), key_of("00001/b")]
    assert [pair.group for pair in pairs] == ["00000", "00001", "00001"]
    assert pairs[1].source == {
        "corpus": "webdataset",
        "tar": "00001.tar",
        "key": "a",
        "url": "https://example.org/1\\ud800",
    }
    for pair, colour in zip(pairs, [LIME, BLUE, RED], strict=True):
        assert np.abs(pair.image().pixels.astype(int) - colour).max() <= 4


def test_a_unit_is_named_by_its_tar_and_changes_with_its_bytes_and_its_name(tmp_path):
    _tar(tmp_path / "a.tar", *GOOD)
    _tar(tmp_path / "b.tar", *GOOD)
    first = webdataset.units(WEBDATASET, 16, Files(tmp_path))
    assert [unit.name for unit in first] == ["a.tar", "b.tar"]
    _tar(tmp_path / "b.tar", *GOOD, *_sample("001"))
    second = webdataset.units(WEBDATASET, 16, Files(tmp_path))
    assert len({unit.sha256 for unit in [*first, *second]}) == 3 and first[0].sha256 == second[0].sha256


def test_unsorted_members_are_put_together(tmp_path):
    """wds_unsorted: all pictures first, then all texts."""
    _tar(tmp_path / "0.tar", ("b.png", _image("blue")), ("a.png", _image()), ("b.txt", b"second"), ("a.txt", b"first"))
    assert _captions(tmp_path) == {"a": ["first"], "b": ["second"]}
    assert [_colour(item) for item in _items(tmp_path)] == [RED, BLUE]


def test_different_samples_have_different_keys(tmp_path):
    """wds_key_collision: train.tar with extra-0001, train-extra.tar with 0001; and a.tar with b/1 beside a/b.tar."""
    _tar(tmp_path / "train.tar", *_sample("extra-0001", "red"))
    _tar(tmp_path / "train-extra.tar", *_sample("0001", "blue"))
    _tar(tmp_path / "a.tar", *_sample("b/1", "lime"), *_sample("b-1", "red"), *_sample("b_1", "red"))
    _tar(tmp_path / "a/b.tar", *_sample("1", "blue"))
    items = _items(tmp_path)
    assert len({item.key for item in items}) == len(items) == 6
    assert [_colour(item) for item in items] == [RED, LIME, RED, BLUE, BLUE, RED]


def test_one_name_for_two_tars_is_refused(tmp_path):
    _tar(tmp_path / "0.tar", *GOOD)
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(_bytes(*GOOD)))
    with pytest.raises(ConfigError, match=r"0\.tar and 0\.tar\.gz; expected one tar of a name"):
        _items(tmp_path)


def test_the_same_samples_in_folders_and_in_tars_have_equal_keys_groups_and_order(tmp_path):
    keys = {"a": ["000", "000-b", "000_c", "caf\u00e9"], "a-b": ["1", "10", "2"], "b c": ["x"]}
    for name, stems in keys.items():
        _tar(tmp_path / "tars" / f"{name}.tar", *(member for stem in reversed(stems) for member in _sample(stem)))
        (tmp_path / "folder" / name).mkdir(parents=True)
        for file, data in (member for stem in stems for member in _sample(stem)):
            (tmp_path / "folder" / name / str(file)).write_bytes(data)
    tars = _items(tmp_path / "tars")
    slices = folder.units(FOLDER, 16, Files(tmp_path / "folder"))
    files = [item for unit in slices for item in unit.items()]
    assert len(tars) == len(files) == 8
    for one, other in zip(tars, files, strict=True):
        assert (one.key, one.group, one.captions, one.split) == (other.key, other.group, other.captions, other.split)
        assert (one.image().pixels == other.image().pixels).all()


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
    _tar(tmp_path / "0.tar", *GOOD, *CASES[reason], *_sample("y"))
    assert _rejected(tmp_path) == [(reason, "x")]
    assert _taken(tmp_path) == ["000", "y"]


@pytest.mark.parametrize("text", [b"[]", b"3", b'{"caption": 3}', b"[" * 50_000])
def test_json_without_a_caption(tmp_path, text):
    _tar(tmp_path / "0.tar", ("x.png", _image()), ("x.json", text))
    assert _rejected(tmp_path) in ([("BAD_JSON", "x")], [("MISSING_CAPTION", "x")])


@pytest.mark.parametrize(
    ("reason", "key", "member"),
    [
        ("UNSAFE_PATH", "../x", ("../x.png", b"")),
        ("UNSAFE_PATH", "/etc/x", ("/etc/x.png", b"")),
        ("BAD_TYPE", "x", _special("x.png", tarfile.SYMTYPE, "/etc/passwd")),
        ("BAD_TYPE", "x", _special("x.png", tarfile.LNKTYPE, "/etc/passwd")),
        ("BAD_TYPE", "x", _special("x.png", tarfile.CHRTYPE)),
        ("BAD_TYPE", "x", _special("x.png", tarfile.FIFOTYPE)),
        ("DUPLICATE_MEMBER", "000", ("000.png", _image("blue"))),
        ("DUPLICATE_MEMBER", "000", ("000.PNG", _image("blue"))),
    ],
)
def test_strange_members_are_rejected_and_their_neighbours_stay(tmp_path, reason, key, member):
    _tar(tmp_path / "0.tar", *GOOD, member, _special("folder", tarfile.DIRTYPE))
    assert _rejected(tmp_path) == [(reason, key)]
    (pair,) = [item for item in _items(tmp_path) if isinstance(item, Pair)]
    assert pair.source["key"] == "000" and _colour(pair) == RED, "of duplicates the first counts"


def test_a_sample_with_a_strange_member_counts_once(tmp_path):
    _tar(tmp_path / "0.tar", _special("x.png", tarfile.SYMTYPE, "y.png"), ("x.txt", b"a caption"), *_sample("y"))
    rejection, pair = _items(tmp_path)
    assert (rejection.reason, rejection.detail) == ("BAD_TYPE", "member 'x.png' is a symbolic link")
    assert pair.source["key"] == "y"


def test_duplicates_of_a_sample_are_one_rejection(tmp_path):
    """wds_duplicates: an append after a crash."""
    _tar(tmp_path / "0.tar", *_sample("1", "red", "first"), *_sample("1", "blue", "second"))
    pair, rejection = _items(tmp_path)
    assert pair.captions == ["first"] and _colour(pair) == RED
    assert rejection.reason == "DUPLICATE_MEMBER" and "'1.png'" in rejection.detail and "'1.txt'" in rejection.detail


def test_hard_links_are_what_they_lead_to(tmp_path):
    """wds_links: `tar` writes one of equal files as a hard link."""
    link = _special("b.png", tarfile.LNKTYPE, "./a.png")
    _tar(tmp_path / "0.tar", ("./a.png", _image("blue")), ("./a.txt", b"one"), link, ("./b.txt", b"two"))
    assert [_colour(item) for item in _items(tmp_path)] == [BLUE, BLUE]
    assert _captions(tmp_path) == {"a": ["one"], "b": ["two"]}


def test_the_twins_of_a_mac_are_no_samples(tmp_path):
    """wds_mac_tar and wds_mac_copy: a ._ twin of each member, names with ./, and a ._ twin of the tar."""
    names = ("a.png", "a.txt")
    twins = [(f"./._{name}", b"\0\x05\x16\x07") for name in names]
    rest = [
        ("__MACOSX/._a.png", b""),
        ("__MACOSX/a.png", _image()),
        ("@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", _image()),
        (".DS_Store", b""),
        ("sub/Thumbs.db", b""),
        ("README.txt", b""),
        ("__meta__/x", b""),
    ]
    _tar(tmp_path / "0.tar", twins[0], ("./a.png", _image()), twins[1], ("./a.txt", b"a caption"), *rest)
    (tmp_path / "._0.tar").write_bytes(b"\0\x05\x16\x07")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/1.tar").write_bytes(b"")
    assert (_taken(tmp_path), _rejected(tmp_path)) == (["a"], [])
    assert _litter(tmp_path) == [{".db": 1}]


def test_what_is_neither_a_picture_nor_a_text_is_no_sample(tmp_path):
    """Caches, papers and masks, some of which the params ignore; beside a picture or a text a file belongs to it."""
    cache, paper = ("a_0064x0064_sd.npz", b"PK"), ("PAPER.PDF", b"%PDF")
    masks = [("_masks/a.png", _image()), ("a-masklabel.png", _image()), ("sub/_MASKS/a.png", _image())]
    others = [("Makefile", b""), ("b.seg.npy", b""), ("film.mp4", b""), ("film.txt", b"a film"), ("000.npz", b"")]
    _tar(tmp_path / "0.tar", *GOOD, cache, paper, *masks, *others)
    _tar(tmp_path / "_masks/1.tar", *GOOD)
    assert (_taken(tmp_path), _rejected(tmp_path)) == (["000"], [("MISSING_IMAGE", "film")])
    assert _litter(tmp_path) == [{".npz": 1, ".pdf": 1, "without suffix": 1, ".npy": 1}]
    shown = [("MISSING_CAPTION", "_masks/a"), ("MISSING_CAPTION", "a-masklabel")]
    assert _rejected(tmp_path, ignore=["sub"])[:2] == shown


def test_a_text_that_the_params_name_makes_a_sample_and_so_does_the_part_of_the_image(tmp_path):
    _tar(tmp_path / "0.tar", *GOOD, ("x.prompt", b"a caption"), ("y.picture", _image()))
    assert _rejected(tmp_path) == [] and _litter(tmp_path) == [{".prompt": 1, ".picture": 1}]
    named = CAPTIONS.model_copy(update={"sources": [".prompt", ".txt"]})
    assert _rejected(tmp_path, captions=named) == [("MISSING_IMAGE", "x")]
    assert ("MISSING_CAPTION", "y") in _rejected(tmp_path, image_part="picture")


@pytest.mark.parametrize("key_ends_at", ["first_dot", "last_dot"])
def test_a_text_may_be_named_after_the_whole_file_of_its_picture(tmp_path, key_ends_at):
    """a.png.txt, as a folder takes it too; where dots are in keys, key and part end as those of the picture do."""
    members = [("a.png", _image()), ("a.png.txt", b"one"), ("1.5.png", _image()), ("1.5.PNG.TXT", b"two")]
    _tar(tmp_path / "0.tar", *members)
    found = {"a": ["one"]} | ({"1.5": ["two"]} if key_ends_at == "last_dot" else {})
    assert _captions(tmp_path, key_ends_at=key_ends_at) == found


def test_keys_with_dots_are_named_or_read(tmp_path):
    """wds_dots: 22.05.jpg with 22.05.txt, img.v2.001.jpg with its text."""
    keys = ("22.05", "22.06", "img.v2.001", "img.v2.002")
    _tar(tmp_path / "0.tar", *GOOD, *(member for key in keys for member in _sample(key)))
    assert _taken(tmp_path) == ["000"] and _rejected(tmp_path) == [("DOTTED_KEY", key) for key in keys]
    detail = next(item.detail for item in _items(tmp_path) if isinstance(item, Rejection))
    assert "22.05.png: a key ends at its first dot" in detail and "key_ends_at: last_dot" in detail
    assert _taken(tmp_path, key_ends_at="last_dot") == ["000", *keys]


def test_parts_with_dots_are_parts(tmp_path):
    members = [("k.png", _image()), ("k.seg.png", _image("blue")), ("k.txt", b"a caption")]
    _tar(tmp_path / "0.tar", *members)
    assert _taken(tmp_path) == ["k"] and _rejected(tmp_path) == []
    _tar(tmp_path / "0.tar", *members, ("k.05.png", _image()), ("k.05.txt", b"another"))
    assert _taken(tmp_path) == ["k"] and _rejected(tmp_path) == [("DOTTED_KEY", "k.05")]


def test_the_part_with_the_picture_can_be_chosen(tmp_path):
    """Masks beside pictures; KEY.input.jpg with KEY.outputs.txt."""
    _tar(tmp_path / "0.tar", ("m.jpg", _image("blue", "JPEG")), ("m.png", _image("white")), ("m.txt", b"a caption"))
    assert _rejected(tmp_path) == [("TWO_IMAGES", "m")]
    (pair,) = _items(tmp_path, image_part="jpg")
    assert np.abs(np.array(_colour(pair)) - BLUE).max() <= 4
    _tar(tmp_path / "0.tar", ("m.input.jpg", _image("blue", "JPEG")), ("m.outputs.txt", b"a caption"))
    assert _rejected(tmp_path) == [("DOTTED_KEY", "m.input")]
    outputs = CAPTIONS.model_copy(update={"sources": [".outputs.txt"]})
    assert _captions(tmp_path, image_part="input.jpg", captions=outputs) == {"m": ["a caption"]}
    assert _rejected(tmp_path, image_part="png", captions=outputs) == [("MISSING_IMAGE", "m")]


def test_a_part_with_a_dot_needs_keys_that_end_at_the_first():
    values = WEBDATASET.model_dump() | {"image_part": "input.jpg", "key_ends_at": "last_dot"}
    with pytest.raises(ValueError, match="has a dot, which no part has"):
        type(WEBDATASET).model_validate(values)


def test_names_of_a_mac_and_of_others_are_one_name(tmp_path):
    """names_unicode: macOS writes an accented letter as two characters."""
    _tar(tmp_path / "0.tar", ("cafe\u0301.png", _image()), ("caf\u00e9.txt", b"a caption"))
    (pair,) = _items(tmp_path)
    assert pair.source["key"] == "caf\u00e9" and pair.key == key_of("0/caf\u00e9")


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_foreign_and_upper_case_names_are_read(tmp_path, kind):
    """wds_names."""
    names = ["d" * 120 + "/x", "été/🐈", "UP", "ä" * 90]
    members = [(f"{key}.PNG", _image()) for key in names] + [(f"{key}.TXT", b"a caption") for key in names]
    _tar(tmp_path / "0.tar", *members, kind=kind)
    assert _taken(tmp_path) == sorted(names)
    assert all(_colour(item) == RED for item in _items(tmp_path))


def test_what_img2dataset_writes(tmp_path):
    """wds_img2dataset: null captions and empty texts, and samples without json."""
    null = b'{"caption": null, "url": "http://x/2", "status": "success"}'
    _tar(
        tmp_path / "00000.tar",
        *(("1.jpg", _image("red", "JPEG")), ("1.txt", b"a whale"), ("1.json", b'{"caption": "a whale"}')),
        *(("2.jpg", _image("red", "JPEG")), ("2.txt", b""), ("2.json", null)),
        *(("3.jpg", _image("red", "JPEG")), ("3.txt", b"a whale")),
        *(("4.jpg", _image("red", "JPEG")), ("4.json", b'{"caption": "of the json"}')),
        *(("5.jpg", _image("red", "JPEG")), ("5.txt", b""), ("5.json", b'{"caption": "of the json"}')),
    )
    of_json = ["of the json"]
    assert _captions(tmp_path) == {"1": ["a whale"], "3": ["a whale"], "4": of_json, "5": of_json}
    assert _rejected(tmp_path) == [("EMPTY_CAPTION", "2")]


def test_captions_of_other_fields_and_of_lists(tmp_path):
    """wds_json_captions and wds_multiline: the rules are those of folders."""
    facts = {
        "1": {"caption": ["a", "b"]},
        "2": {"text": "c"},
        "3": {"recaption": "long", "caption": "short"},
        "4": {"x": 1},
    }
    for key, value in facts.items():
        _tar(tmp_path / f"{key}.tar", (f"{key}.png", _image()), (f"{key}.json", json.dumps(value).encode()))
    lines = "\n".join(f"line {i}" for i in range(5))
    _tar(tmp_path / "5.tar", *_sample("5", caption=lines))
    of_lines = [f"line {i}" for i in range(5)]
    assert _captions(tmp_path) == {"1": ["a", "b"], "2": ["c"], "3": ["short"], "5": of_lines}
    assert _rejected(tmp_path) == [("MISSING_CAPTION", "4")]
    one = CAPTIONS.model_copy(update={"sources": ["recaption", ".txt"], "text_files": "one_caption"})
    assert _captions(tmp_path, captions=one) == {"3": ["long"], "5": [" ".join(of_lines)]}


def test_an_image_that_does_not_decode_is_told_when_it_is_made(tmp_path):
    _tar(tmp_path / "0.tar", ("x.jpg", b"<html>"), ("x.txt", b"a caption"))
    (pair,) = _items(tmp_path)
    with pytest.raises(Rejected, match="NOT_IMAGE"):
        pair.image()


def _cut(data: bytes, key: bytes) -> bytes:
    return data[: data.index(key) + 530]


def test_every_damaged_tar_is_named_at_once_and_can_be_salvaged_or_skipped(tmp_path):
    """wds_cut_shard and wds_many_bad: cut, empty, a page of an error, gzip under another name."""
    whole = _bytes(*GOOD, *_sample("001"))
    bad = {"1": _cut(whole, b"001.png"), "3": b"", "5": b"<html>503</html>", "7": gzip.compress(whole)}
    for i in range(8):
        (tmp_path / f"{i}.tar").write_bytes(bad.get(str(i), whole))
    with pytest.raises(IntegrityError) as caught:
        _items(tmp_path)
    line, fix = str(caught.value).splitlines()
    assert "4 of 8 tars damaged: 1.tar (byte 2048: " in line and "bytes of contents, of which 18 are there" in line
    assert (
        "3.tar (byte 0: an empty file), 5.tar (byte 0: 16 bytes of a cut header), 7.tar (byte 0: a file that gzip"
        in line
    )
    assert fix.startswith("fix: ") and "salvage" in fix and "skip" in fix
    assert _taken(tmp_path, damaged_tars="salvage").count("000") == 5
    lost = [("DAMAGED_MEMBER", "001"), ("DAMAGED_TAR", "@0"), ("DAMAGED_TAR", "@0"), ("DAMAGED_TAR", "@0")]
    assert _rejected(tmp_path, damaged_tars="salvage") == lost
    assert len(_taken(tmp_path, damaged_tars="skip")) == 8
    skipped = [("DAMAGED_TAR", key) for key in ("000", "001", "@0", "@0", "@0")]
    assert _rejected(tmp_path, damaged_tars="skip") == skipped


def test_damage_costs_its_own_samples(tmp_path):
    data = bytearray(_bytes(*(member for i in range(5) for member in _sample(f"{i}"))))
    second = data.index(b"2.png")
    data[second : second + 512] = bytes(512)
    (tmp_path / "0.tar").write_bytes(data)
    assert _taken(tmp_path, **SALVAGE) == ["0", "1", "3", "4"]
    assert _rejected(tmp_path, **SALVAGE) == [("DAMAGED_TAR", f"@{second}"), ("MISSING_IMAGE", "2")]


def test_a_tar_without_an_end_is_read_and_told(tmp_path, capsys):
    """wds_no_end: its writer was not closed. And one of a shard of which nothing could be downloaded."""
    data = _bytes(*GOOD)
    (tmp_path / "0.tar").write_bytes(data[: len(data.rstrip(b"\0")) // 512 * 512 + 512])
    _tar(tmp_path / "1.tar")
    assert _taken(tmp_path) == ["000"]
    said = capsys.readouterr().err
    assert "2 of 2 tars are read to their end, but may have lost samples" in said and said.endswith(
        "0.tar (no end), 1.tar (no member)\n"
    )


def test_joined_tars_are_read_to_the_end(tmp_path, capsys):
    """wds_concat: `cat a.tar b.tar`, of which GNU tar reads half."""
    (tmp_path / "0.tar").write_bytes(_bytes(*GOOD) + _bytes(*_sample("001")))
    assert (_taken(tmp_path), _rejected(tmp_path)) == (["000", "001"], [])
    assert "0.tar (another tar from byte 10240 on)" in capsys.readouterr().err


def test_packed_tars_are_read_or_named(tmp_path):
    """wds_gz: .tar.gz, .tgz and .TAR."""
    data = _bytes(*_sample("a", "red", "one"), *_sample("b", "blue", "two"))
    for name in ("1.tar.gz", "2.TGZ"):
        (tmp_path / name).write_bytes(gzip.compress(data))
    (tmp_path / "0.TAR").write_bytes(data)
    assert _taken(tmp_path) == ["a", "b"] * 3 and _rejected(tmp_path) == []
    assert [_colour(item) for item in _items(tmp_path)] == [RED, BLUE] * 3
    assert [item.key for item in _items(tmp_path)] == [key_of(f"{tar}/{key}") for tar in "012" for key in "ab"]
    (tmp_path / "3.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(IntegrityError, match=r"1 of 4 tars damaged: 3\.tar\.zst \(byte 0: packed as zst"):
        _items(tmp_path)


def test_what_cannot_be_opened_is_named(tmp_path):
    """wds_dangling_link: a link of a cache whose target is gone; and a folder with the name of a tar."""
    _tar(tmp_path / "0.tar", *GOOD)
    (tmp_path / "1.tar").symlink_to(tmp_path / "nowhere" / "1.tar")
    (tmp_path / "2.tar").mkdir()
    (tmp_path / "2.tar/000.png").write_bytes(_image())
    with pytest.raises(IntegrityError) as caught:
        _items(tmp_path)
    line = str(caught.value).splitlines()[0]
    assert "1.tar (byte 0: it cannot be read: No such file" in line and "2.tar (byte 0: it cannot be read: Is a" in line
    assert _taken(tmp_path, **SALVAGE) == ["000"]
    assert _rejected(tmp_path, **SALVAGE) == [("DAMAGED_TAR", "@0"), ("DAMAGED_TAR", "@0")]


def test_a_linked_tar_is_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.tar").symlink_to(_tar(tmp_path / "elsewhere.tar", *GOOD))
    assert _taken(tmp_path / "in") == ["000"]


def test_a_linked_folder_is_refused(tmp_path):
    """wds_linked_folder: DVC does not see what is behind it."""
    _tar(tmp_path / "in/0.tar", *GOOD)
    _tar(tmp_path / "elsewhere/1.tar", *GOOD)
    (tmp_path / "in/big").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="a link to the folder"):
        _items(tmp_path / "in")


def test_tars_elsewhere_are_looked_over_by_their_ends(tmp_path, monkeypatch):
    """`directory: NAME.jsonl`: to read all headers of a remote tar is to fetch it."""
    _tar(tmp_path / "store/0.tar", *GOOD)
    whole = _tar(tmp_path / "store/1.tar", *GOOD, *_sample("001", "blue")).read_bytes()
    (tmp_path / "store/2.tgz").write_bytes(gzip.compress(_bytes(*_sample("002", "lime"))))
    remote.write(f"file://{tmp_path}/store", tmp_path / "whole.jsonl")
    looks = []
    monkeypatch.setattr(unpacked, "look", lambda *arguments, real=unpacked.look: looks.append(1) or real(*arguments))
    far = [unit for unit in webdataset.units(WEBDATASET, 16, Files(tmp_path / "whole.jsonl"))]
    assert looks == []
    items = [item for unit in far for item in unit.items()]
    assert [_colour(item) for item in items] == [RED, RED, BLUE, LIME]
    assert [item.key for item in items] == [item.key for item in _items(tmp_path / "store")]
    (tmp_path / "store/1.tar").write_bytes(_cut(whole, b"001.png"))
    remote.write(f"file://{tmp_path}/store", tmp_path / "cut.jsonl")
    with pytest.raises(IntegrityError, match=r"1 of 3 tars damaged: 1\.tar"):
        webdataset.units(WEBDATASET, 16, Files(tmp_path / "cut.jsonl"))


def test_no_part_of_a_damaged_sample_is_used():
    """Even if another copy of the damaged member is whole."""
    members = [
        Member("a.png", 512, 3, "file", ""),
        Member("a.txt", 1536, 3, "file", ""),
        Member("b.txt", 0, 1, "file", ""),
    ]
    found, _ = tar_samples.samples(Scan(members, [Damage(0, "cut", "./a.png"), Damage(9, "no header", "")]), WEBDATASET)
    assert {key: sample.is_damaged for key, sample in found.items()} == {"a": True, "b": False}
    assert str(found["a"].problems[0]) == str(Rejected("DAMAGED_MEMBER", "'./a.png' at byte 0: cut"))


def test_no_tar_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no \*\.tar in it"):
        _items(tmp_path)


@pytest.mark.parametrize("content", [b'[{"bbox": [1, 2, 3, 4]}]', b"null", b"{", b"9" * 200])
def test_json_that_nothing_asks_for_costs_no_sample(tmp_path, content):
    """Such as boxes of an image, whose caption is in KEY.txt."""
    _tar(tmp_path / "0.tar", *_sample("a"), ("a.json", content))
    small = {"pixels": WEBDATASET.pixels.model_copy(update={"max_bytes": 150})}
    assert _taken(tmp_path, **(small if len(content) > 150 else {})) == ["a"] and _rejected(tmp_path) == []
