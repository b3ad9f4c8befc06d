import json
import os
import pickle
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.core.errors import ConfigError
from ldm.corpora import folder
from ldm.corpora.files import Files
from ldm.corpora.pairs import ByContent, Item, Litter, Pair, Rejected, Rejection
from tests.corpora import CAPTIONS, FOLDER

ONE_CAPTION = {"captions": CAPTIONS.model_copy(update={"text_files": "one_caption"})}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def _put(root: Path, name: str, caption: str | bytes | None, colour: str = "red") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path, "PNG")
    if caption is not None:
        _write(path.with_suffix(".txt"), caption)


def _write(path: Path, text: str | bytes) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def _all(root: Path, is_captioned: bool = True, **changes: Any) -> list[Item]:
    params = FOLDER.model_copy(update=changes)
    units = folder.units(params, 16, Files.below(root.parent, root.name), is_captioned)
    return [item for unit in pickle.loads(pickle.dumps(units)) for item in unit.items()]


def _read(root: Path, is_captioned: bool = True, **changes: Any) -> list[Pair | Rejection]:
    return [item for item in _all(root, is_captioned, **changes) if not isinstance(item, Litter)]


def _litter(root: Path) -> list[Mapping[str, int]]:
    return [item.counts for item in _all(root) if isinstance(item, Litter)]


def _pairs(root: Path, **changes: Any) -> list[Pair]:
    """All samples, none of which may be rejected."""
    found = _read(root, **changes)
    assert all(isinstance(item, Pair) for item in found), found
    return [item for item in found if isinstance(item, Pair)]


def _captions(root: Path, **changes: Any) -> dict[str, list[str]]:
    return {item.key: item.captions for item in _pairs(root, **changes)}


def _rejection(root: Path, **changes: Any) -> Rejection:
    (item,) = _read(root, **changes)
    assert isinstance(item, Rejection), item
    return item


# Samples


def test_images_with_captions_in_order_of_names(mine: Path) -> None:
    _put(mine, "b.png", "a blue thing\n\n  something   blue \n", "blue")
    _put(mine, "sub dir/a.JPG", "a red thing", "red")
    pairs = _pairs(mine)
    assert [pair.source["file"] for pair in pairs] == ["b.png", "sub dir/a.JPG"]
    assert [pair.captions for pair in pairs] == [["a blue thing", "something blue"], ["a red thing"]]
    assert pairs[0].key == "b" and pairs[1].key.startswith("sub-dir-a-")
    assert [pair.group for pair in pairs] == ["", "sub dir"]
    assert [pair.claims for pair in pairs] == [[None, None], [None]]
    for pair, colour in zip(pairs, [(0, 0, 255), (255, 0, 0)], strict=True):
        assert callable(pair.image)
        assert np.array_equal(pair.image().pixels, np.full((16, 16, 3), colour, np.uint8))


def test_texts_are_found_under_all_their_names(mine: Path) -> None:
    """Case `caption_files`: kohya, taggui and others each have their own."""
    for name in ("IMG_1.JPG", "IMG_2.JPG", "three.png", "four.jpg", "five.jpg", "22.05.jpg"):
        _put(mine, name, None)
    texts = {"IMG_1.txt": "one", "IMG_2.TXT": "two", "three.png.txt": "three", "four.caption": "four"}
    for name, text in {**texts, "five.json": '{"caption": "five"}', "22.05.txt": "dots"}.items():
        _write(mine / name, text)
    found = {pair.source["file"]: pair.captions for pair in _pairs(mine)}
    assert found == {
        "22.05.jpg": ["dots"],
        "IMG_1.JPG": ["one"],
        "IMG_2.JPG": ["two"],
        "five.jpg": ["five"],
        "four.jpg": ["four"],
        "three.png": ["three"],
    }
    _put(mine, "six.jpg", None)
    (six,) = [item for item in _read(mine) if isinstance(item, Rejection)]
    assert (six.reason, six.source["file"]) == ("MISSING_CAPTION", "six.jpg")
    assert six.detail == "six.jpg: none of .txt, .caption, caption, text; there is nothing else"


def test_a_text_of_another_suffix_is_a_sources_own(mine: Path) -> None:
    _put(mine, "a.png", "short")
    _write(mine / "a.long.txt", "a long caption")
    changes = {"captions": CAPTIONS.model_copy(update={"sources": [".long.txt", ".txt"]})}
    assert _captions(mine, **changes) == {"a": ["a long caption"]}


def test_paragraphs_are_one_caption_unless_the_params_say_otherwise(mine: Path) -> None:
    """Case `caption_paragraphs`; U+2028 and U+0085 end no line of a text editor."""
    _put(mine, "para.png", "A red fox.\n\nIts fur is wet.\n\nStyle: photograph, 35 mm.\n")
    _put(mine, "wrap.png", "a caption that an editor\nwrapped")
    _put(mine, "ls.png", "A dog\u2028at sunset")
    _put(mine, "nel.png", "A cat\u0085on a mat")
    assert _captions(mine, **ONE_CAPTION) == {
        "ls": ["A dog at sunset"],
        "nel": ["A cat on a mat"],
        "para": ["A red fox. Its fur is wet. Style: photograph, 35 mm."],
        "wrap": ["a caption that an editor wrapped"],
    }
    per_line = _captions(mine)
    assert len(per_line["para"]) == 3 and len(per_line["wrap"]) == 2 and len(per_line["ls"]) == 1


def test_accented_names_match_in_any_unicode_form(mine: Path) -> None:
    """Case `names_unicode`: macOS writes the picture, another system the text."""
    nfd, nfc = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFD", "NFC"))
    _put(mine, f"{nfd}.png", None)
    _write(mine / f"{nfc}.txt", "a cafe")
    for name, caption in {"A": "upper", "a": "lower", "\u732b \U0001f408": "a cat", "My Photo (1)": "photo"}.items():
        _put(mine, f"{name}.png", caption)
    assert [pair.captions[0] for pair in _pairs(mine)] == ["upper", "photo", "lower", "a cafe", "a cat"]
    key = next(key for key, captions in _captions(mine).items() if captions == ["a cafe"])
    (mine / f"{nfd}.png").rename(mine / f"{nfc}.png")
    assert _captions(mine)[key] == ["a cafe"], "a copy to another system changes no key"
    _put(mine, f"{nfd}.png", None)
    (twice,) = [item for item in _read(mine) if isinstance(item, Rejection)]
    assert twice.reason == "TWO_IMAGES" and "differ in their Unicode form" in twice.detail


# What is no sample


def test_litter_is_no_sample_and_is_named_once(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Case `litter`: seven of these twelve files were once rejected samples."""
    _put(mine, "pic.jpg", "a picture")
    litter = ["pic.npz", "pic_te.safetensors", "pic_0064x0064_sd.npz", "Thumbs.db", "desktop.ini", "pic.jpg~"]
    hidden = [".DS_Store", "._pic.jpg", ".git/config", "@eaDir/pic.jpg/M.jpg", "__MACOSX/a.png"]
    for name in [*litter, "meta_cap.json", "mine.dvc", *hidden]:
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        _write(mine / name, "{}")
    assert _captions(mine) == {"pic": ["a picture"]}
    note = capsys.readouterr().err
    assert note.count("note: ") == 1 and "8 files" in note and "2 .npz" in note and "1 .jpg~" in note
    (counts,) = _litter(mine)
    assert sum(counts.values()) == 8 and counts[".npz"] == 2 and counts[".jpg~"] == 1


def test_a_file_of_another_kind_counts_once(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a text it is a sample without an image; alone, or beside an image, it is no sample."""
    _put(mine, "pic.png", "a picture")
    others = ("a.mp4", "b.svg", "c", "d.psd", "pic.psd")
    for name in (*others, "lost.txt", "film.mp4", "film.txt", "drawing", "drawing.txt"):
        _write(mine / name, "x")
    found = _read(mine)
    assert sorted((item.reason, item.key) for item in found if isinstance(item, Rejection)) == [
        ("MISSING_IMAGE", "lost"),
        ("UNKNOWN_FILE", "drawing"),
        ("UNKNOWN_FILE", "film"),
    ]
    assert _litter(mine) == [{".psd": 2, ".mp4": 1, ".svg": 1, "without suffix": 1}]
    assert "note: 5 files in" in capsys.readouterr().err
    for name in ("a.mp4", "b.svg", "d.psd", "pic.psd"):
        (mine / name).unlink()
    _read(mine)
    assert "note: 1 file in" in capsys.readouterr().err


def test_an_added_cache_changes_no_other_unit(mine: Path) -> None:
    _put(mine, "pic.png", "a picture")
    before = folder.units(FOLDER, 16, Files.below(mine.parent, mine.name))
    _write(mine / "pic.npz", "x")
    after = folder.units(FOLDER, 16, Files.below(mine.parent, mine.name))
    assert [unit.sha256 for unit in after[:-1]] == [unit.sha256 for unit in before]
    assert [*after[-1].items()] == [Litter({".npz": 1})]


def test_names_that_the_params_ignore_hold_no_sample(mine: Path) -> None:
    _put(mine, "a.png", "a caption")
    for name in ("_masks/a.png", "sub/_MASKS/a.png", "a-masklabel.png", "README.txt", "License.txt"):
        _put(mine, name, None)
    ignore = ["_masks", "*-masklabel.*", "readme*", "LICENSE*"]
    assert list(_captions(mine, ignore=ignore)) == ["a"]
    assert len(_read(mine)) == 6


@pytest.mark.parametrize("suffix", ["png", "txt"])
def test_a_pipe_or_device_is_rejected_and_not_waited_for(mine: Path, suffix: str) -> None:
    """Opened, a pipe waits for ever for its other end, and /dev/zero has no end."""
    _put(mine, "good.png", "a caption")
    for name, caption in (("pipe", "of a pipe"), ("zero", "of zeros")):
        _put(mine, f"{name}.png", caption)
        (mine / f"{name}.{suffix}").unlink()
    os.mkfifo(mine / f"pipe.{suffix}")
    (mine / f"zero.{suffix}").symlink_to("/dev/zero")
    found: list[tuple[str, str]] = []
    for item in _read(mine):
        try:
            assert isinstance(item, Rejection) or (callable(item.image) and item.image() is not None)
            found.append((item.key, item.reason if isinstance(item, Rejection) else "taken"))
        except Rejected as error:
            found.append((item.key, error.reason))
    assert found == [("good", "taken"), ("pipe", "UNREADABLE"), ("zero", "UNREADABLE")]


# Metadata


def test_a_comma_without_quotes_costs_its_row_and_paths_of_windows_are_paths(mine: Path) -> None:
    for name in ("sub/1.png", "sub/2.png"):
        _put(mine, name, None)
    _write(mine / "metadata.csv", "file_name,text\nsub\\1.png,red, or blue\nsub\\2.png,red\n")
    reasons = {item.reason: item.detail for item in _read(mine) if isinstance(item, Rejection)}
    assert reasons["BAD_METADATA"] == "metadata.csv:2: 1 value too many; a text with commas needs quotes"
    assert "MISSING_CAPTION" in reasons and len(_read(mine)) == 3
    assert [item.captions for item in _read(mine) if isinstance(item, Pair)] == [["red"]]


def test_a_column_without_a_name_is_no_value_too_many(mine: Path) -> None:
    """As pandas writes a table with its row numbers."""
    _put(mine, "1.png", None)
    _write(mine / "metadata.csv", ",file_name,text\n0,1.png,red\n")
    assert [item.captions for item in _read(mine) if isinstance(item, Pair)] == [["red"]]


def test_rows_of_metadata_are_fields_of_their_images(mine: Path) -> None:
    """Case `hf_metadata_jsonl`, in every format that imagefolder knows, and in a folder of its own."""
    import pyarrow
    from pyarrow import parquet

    rows = [{"file_name": "1.jpg", "text": "an orange cat"}, {"file_name": "./deep/2.jpg", "text": "a car, parked"}]
    for part in ("a", "b", "c"):
        for row in rows:
            _put(mine, f"{part}/{row['file_name']}", None)
    _put(mine, "good.png", "by its text")
    _write(mine / "a/metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    _write(mine / "b/metadata.csv", '\ufefffile_name,text\n1.jpg,an orange cat\n./deep/2.jpg,"a car, parked"\n')
    parquet.write_table(pyarrow.Table.from_pylist(rows), mine / "c/metadata.parquet")
    found = {pair.source["file"]: pair.captions for pair in _pairs(mine)}
    expected = {f"{part}/1.jpg": ["an orange cat"] for part in "abc"}
    assert found == expected | {f"{part}/deep/2.jpg": ["a car, parked"] for part in "abc"} | {
        "good.png": ["by its text"]
    }


def test_rows_without_an_image_and_images_without_a_row_are_told(mine: Path) -> None:
    _put(mine, "there.jpg", None)
    _put(mine, "nowhere.jpg", None)
    rows = ['{"file_name": "there.jpg", "text": "a"}', '{"file_name": "gone.jpg", "text": "b"}', "{", "[]", '{"f": 1}']
    _write(mine / "metadata.jsonl", "\n".join(rows))
    found = [item for item in _read(mine) if isinstance(item, Rejection)]
    assert {(item.source["file"], item.reason) for item in found} == {
        ("nowhere.jpg", "MISSING_CAPTION"),
        ("gone.jpg", "MISSING_IMAGE"),
        *((f"metadata.jsonl:{line}", "BAD_METADATA") for line in (3, 4, 5)),
    }
    assert next(item.detail for item in found if item.reason == "MISSING_IMAGE") == "metadata.jsonl:2 names gone.jpg"


def test_metadata_makes_a_file_without_suffix_an_image(mine: Path) -> None:
    _put(mine, "0001", None)
    _write(mine / "metadata.csv", "file_name,caption\n0001,no suffix\n")
    assert _captions(mine) == {"0001": ["no suffix"]}


# Rejections

CASES = {
    "MISSING_CAPTION": lambda root: _put(root, "x.png", None),
    "EMPTY_CAPTION": lambda root: _put(root, "x.png", " \n\n"),
    "NOT_UTF8": lambda root: _put(root, "x.png", b"caf\xe9"),
    "LONG_CAPTION": lambda root: _put(root, "x.png", "fine\n" + "x" * 201),
    "TOO_MANY_BYTES": lambda root: _put(root, "x.png", "x " * 60_000),
    "MISSING_IMAGE": lambda root: _write(root / "x.txt", "a caption"),
    "UNKNOWN_FILE": lambda root: [_write(root / name, "8BPS") for name in ("x.psd", "x.txt")],
    "TWO_IMAGES": lambda root: [_put(root, name, "a caption") for name in ("x.png", "x.jpg")],
    "BAD_JSON": lambda root: [_put(root, "x.png", None), _write(root / "x.json", '["a", "b"]')],
}


@pytest.mark.parametrize("reason", CASES)
def test_rejections(mine: Path, reason: str) -> None:
    CASES[reason](mine)
    item = _rejection(mine)
    assert item.reason == reason and item.detail
    assert item.key == "x" and item.source["file"].startswith("x.")
    assert item.detail.encode(), "can be printed"


def test_partners_are_named(mine: Path) -> None:
    CASES["UNKNOWN_FILE"](mine)
    assert _rejection(mine).detail == "x.psd beside x.txt has no suffix of an image"
    (mine / "x.psd").unlink()
    assert _rejection(mine).detail == "no image beside x.txt"
    _put(mine, "X.png", "a caption")
    (text,) = [item for item in _read(mine) if isinstance(item, Rejection)]
    assert text.detail == "no image beside x.txt, but X.png, which differs in upper or lower case"
    (mine / "X.png").unlink()
    (mine / "X.txt").unlink()
    (mine / "x.txt").unlink()
    CASES["TWO_IMAGES"](mine)
    assert _rejection(mine).detail == "x.jpg, x.png"


def test_an_image_that_does_not_decode_is_told_when_it_is_made(mine: Path) -> None:
    _put(mine, "x.png", "a caption")
    (mine / "x.png").write_bytes(b"<html>")
    (item,) = _pairs(mine)
    assert callable(item.image)
    with pytest.raises(Rejected, match="NOT_IMAGE"):
        item.image()


def test_names_that_are_not_utf8_are_accounted_for(mine: Path) -> None:
    _put(mine, "x\udcff.png", None)
    _write(mine / "y\udcff.txt", "a caption")
    found = _read(mine)
    assert [item.source["file"] for item in found] == ["x\\udcff.png", "y\\udcff.txt"]
    assert [json.dumps(item.__dict__, ensure_ascii=False).encode() for item in found]


def test_texts_are_not_read_for_a_model_of_images_alone(mine: Path) -> None:
    _put(mine, "a.png", b"caf\xe9")
    _put(mine, "b.png", None)
    _write(mine / "metadata.csv", b"caf\xe9")
    assert [item.captions for item in _read(mine, is_captioned=False) if isinstance(item, Pair)] == [[""], [""]]


# The folder


def test_a_dangling_link_is_accounted_for(mine: Path) -> None:
    (mine / "gone.png").symlink_to("nowhere")
    (mine / "gone.txt").write_text("a caption")
    (item,) = _pairs(mine)
    assert callable(item.image)
    with pytest.raises(Rejected, match="UNREADABLE"):
        item.image()


@pytest.mark.parametrize("target", [".", "../elsewhere"])
def test_a_linked_folder_is_refused_since_dvc_does_not_look_behind_it(mine: Path, target: str) -> None:
    (mine.parent / "elsewhere").mkdir()
    (mine / "big").symlink_to(target)
    with pytest.raises(ConfigError, match=r"mine/big: a link to the folder .*DVC does not look behind.*\nfix: move"):
        _read(mine)
    (mine / "big").rename(mine / ".big")
    _put(mine, "a.png", "a caption")
    assert list(_captions(mine)) == ["a"], "nothing behind hidden names is read"
    (mine.parent / "linked").symlink_to("mine")
    with pytest.raises(ConfigError, match="linked: a link"):
        _read(mine.parent / "linked")


def test_source_itself_may_be_a_link(mine: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    _put(mine, "a.png", "a caption")
    source = tmp_path_factory.mktemp("other") / "source"
    source.symlink_to(mine.parent)
    assert list(_captions(source / "mine")) == ["a"]


def test_no_folder_and_a_folder_without_images_are_refused(mine: Path) -> None:
    with pytest.raises(ConfigError, match="no file to read"):
        _read(mine)
    for number in range(3):
        (mine / f"{number}").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ConfigError, match="3 without suffix; expected a folder of images"):
        _read(mine)
    with pytest.raises(ConfigError, match=r"prepare\.corpus\.directory.*other: no such folder"):
        _read(mine.parent / "other")


# Splits and units


def test_what_a_picture_shows_decides_its_split(mine: Path) -> None:
    _put(mine, "a.png", "a caption")
    assert [item.split for item in _pairs(mine)] == [ByContent(FOLDER.val_fraction, FOLDER.seed)]


def test_the_hash_of_a_unit_tells_whether_anything_of_it_changed(mine: Path) -> None:
    def sha256() -> str:
        (unit,) = folder.units(FOLDER, 16, Files(mine))
        return unit.sha256

    _put(mine, "a.png", "a caption")
    seen = [sha256()]
    for name, text in {"a.txt": "another", "a.json": "{}", "metadata.csv": "file_name,text\na.png,x\n"}.items():
        _write(mine / name, text)
        seen.append(sha256())
    _write(mine / "metadata.csv", "file_name,text\na.png,y\n")
    seen.append(sha256())
    _put(mine, "a.png", None, "blue")
    seen.append(sha256())
    assert len(set(seen)) == 6 and sha256() == seen[-1]
