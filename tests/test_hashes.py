"""The memory of files that were hashed: what it trusts, and what makes it read a file again."""

import os
import time
from pathlib import Path

import pytest

from ldm.core import hashes
from ldm.core.errors import IntegrityError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/hashed"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that was not changed for an hour."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    age(path)
    return path


def age(path: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))


def test_a_file_is_hashed_once(cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256, read = hashes.sha256_file(file), list[Path]()
    real = hashes.check_file
    monkeypatch.setattr(hashes, "check_file", lambda path, sha256: read.append(path) or real(path, sha256))
    assert not hashes.is_known(file, sha256)
    for _ in range(3):
        hashes.check_once(file, sha256)
    assert read == [file] and len(list(cache.iterdir())) == 1 and hashes.is_known(file, sha256)
    (file.parent / "link").symlink_to(file)
    assert hashes.is_known(file.parent / "link", sha256)


@pytest.mark.parametrize("change", ["time", "size", "inode", "gone"])
def test_a_file_that_looks_otherwise_is_hashed_again(cache: Path, file: Path, change: str) -> None:
    sha256, times = hashes.sha256_file(file), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    hashes.check_once(file, sha256)
    if change == "time":
        file.write_bytes(b"Content")
    elif change == "size":
        file.write_bytes(b"content ")
        os.utime(file, ns=times)
    elif change == "inode":
        (file.parent / "other").write_bytes(b"Content")
        os.utime(file.parent / "other", ns=times)
        (file.parent / "other").replace(file)
    else:
        file.unlink()
    with pytest.raises(IntegrityError, match=r"file: (SHA-256|no such file)"):
        hashes.check_once(file, sha256)
    assert not hashes.is_known(file, sha256)


def test_another_hash_is_not_remembered(cache: Path, file: Path) -> None:
    hashes.check_once(file, hashes.sha256_file(file))
    with pytest.raises(IntegrityError, match=r"SHA-256 \w{64}; expected SHA-256 0{64}"):
        hashes.check_once(file, "0" * 64)


def test_a_file_that_was_just_changed_is_not_remembered(cache: Path, file: Path) -> None:
    """It could change again within a tick of the file system's clock."""
    file.write_bytes(b"new")
    hashes.check_once(file, hashes.sha256_file(file))
    assert not cache.exists()


def test_a_note_that_is_cut_counts_for_nothing(cache: Path, file: Path) -> None:
    sha256 = hashes.sha256_file(file)
    hashes.check_once(file, sha256)
    (note,) = cache.iterdir()
    for text in (note.read_text()[:-4], "", "ä"):
        note.write_text(text)
        assert not hashes.is_known(file, sha256)
    hashes.check_once(file, sha256)
    assert hashes.is_known(file, sha256)


def test_without_a_folder_for_notes_files_are_hashed_each_time(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "no folder"))
    hashes.check_once(file, hashes.sha256_file(file))
    assert not hashes.is_known(file, hashes.sha256_file(file))
