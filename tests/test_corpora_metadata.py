from pathlib import Path

import pytest

from ldm.core.errors import ConfigError, IntegrityError
from ldm.corpora import made, metadata, pairs
from ldm.corpora.files import Files
from ldm.corpora.metadata import Metadata


def _read(root: Path, **texts: str | bytes) -> Metadata:
    for suffix, text in texts.items():
        (root / f"metadata.{suffix}").write_bytes(text if isinstance(text, bytes) else text.encode())
    return metadata.read(Files(root), [f"metadata.{suffix}" for suffix in texts])


def test_several_rows_of_one_image_are_one_row_of_lists(tmp_path: Path) -> None:
    found = _read(tmp_path, csv='file_name,text,n\na.jpg,one,1\na.jpg,"two,\nlines",2\n')
    assert found.rows == {"a.jpg": {"file_name": ["a.jpg"] * 2, "text": ["one", "two,\nlines"], "n": ["1", "2"]}}
    assert found.places == {"a.jpg": "metadata.csv:2"}


def test_another_column_may_name_the_images_if_it_is_the_only_one(tmp_path: Path) -> None:
    assert list(_read(tmp_path, csv="image_file_name,text\na.jpg,one\n").rows) == ["a.jpg"]
    with pytest.raises(ConfigError, match=r"metadata\.csv: columns image, text; expected one that is called file_name"):
        _read(tmp_path, csv="image,text\na.jpg,one\n")
    with pytest.raises(ConfigError, match="a_file_name, b_file_name"):
        _read(tmp_path, jsonl='{"a_file_name": "x", "b_file_name": "y"}')


def test_only_files_of_the_right_name_are_metadata(tmp_path: Path) -> None:
    for name in ("other.csv", "metadata.json", "mymetadata.csv"):
        (tmp_path / name).write_text("x")
    assert metadata.read(Files(tmp_path), [path.name for path in tmp_path.iterdir()]) == Metadata()


@pytest.mark.parametrize(
    ("suffix", "data"),
    [("jsonl", b'{"file_name": "caf\xe9"}'), ("csv", b"a\0b"), ("parquet", b"PAR1"), ("parquet", b"")],
)
def test_a_file_that_is_not_what_it_is_called_is_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    with pytest.raises(IntegrityError, match=rf"metadata\.{suffix}: .*\nfix: write it again"):
        _read(tmp_path, **{suffix: data})


def test_a_lone_surrogate_in_a_name_leaves_something_that_can_be_written(tmp_path: Path) -> None:
    found = _read(tmp_path, jsonl='{"file_name": "\\ud83d.png", "text": "a"}\n{"file_name": 3, "\\ud800": 1}\n')
    ((path, place),) = found.places.items()
    assert place == "metadata.jsonl:1" and pairs.key_of(path).isascii()
    assert all(made.to_json(vars(each)) for each in found.rejections) and len(found.rejections) == 1
