"""Files that lie elsewhere, on an S3 server, on a server of web pages and in a folder of this machine."""

import errno
import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ldm.core.errors import ConfigError, MachineError
from ldm.corpora import remote
from ldm.corpora.files import File, Files
from ldm.corpora.pairs import Rejected
from ldm.tools import cli
from ldm.tools.cli import manifest as command
from tests.s3 import served

CONTENT = {"2.txt": b"two", "a/1.bin": bytes(range(256)) * 40, "a/empty": b""}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    with served() as system:
        yield system


@pytest.fixture(autouse=True)
def fresh() -> None:
    for cached in (remote._check, remote._block):
        cached.cache_clear()


@pytest.fixture
def manifest(bucket: Any, tmp_path: Path) -> Path:
    for name, data in CONTENT.items():
        bucket.pipe(f"bucket/mine/{name}", data)
    path = tmp_path / "mine.jsonl"
    remote.write("s3://bucket/mine/", path)
    return path


def _check(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed, and read in parts, as those of a folder."""
    assert files.list() == [File(name, len(data)) for name, data in sorted(CONTENT.items())]
    monkeypatch.setattr(remote, "_BLOCK", 1000)
    for name, data in CONTENT.items():
        assert files.read(name) == data
        for offset, size in ((0, 3), (990, 20), (0, 5000), (1000, 1000), (5, 0)):
            assert files.read(name, offset, size) == data[offset : offset + size]
    assert files.read("a/1.bin", 10_000) == CONTENT["a/1.bin"][10_000:]


def test_files_of_a_bucket(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check(Files(manifest), monkeypatch)
    child = os.fork()
    if child == 0:
        os._exit(0 if Files(manifest).read("2.txt") == b"two" else 1)
    assert os.waitpid(child, 0)[1] == 0, "a forked worker has connections of its own"


def test_files_of_a_folder_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path is no legal folder, since DVC would not look there; its manifest is."""
    for name, data in CONTENT.items():
        (tmp_path / "big" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "big" / name).write_bytes(data)
    remote.write(f"file://{tmp_path}/big", tmp_path / "mine.jsonl")
    _check(Files(tmp_path / "mine.jsonl"), monkeypatch)


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *_: Any) -> None:
        pass


def test_files_of_a_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one sends whole files, whatever part is asked for."""
    for name, data in CONTENT.items():
        (tmp_path / "big" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "big" / name).write_bytes(data)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        remote.write(f"http://127.0.0.1:{server.server_port}/big/", tmp_path / "mine.jsonl")
        _check(Files(tmp_path / "mine.jsonl"), monkeypatch)
    finally:
        server.shutdown()


def test_neighbouring_reads_cost_one_request(manifest: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[int, int]] = []
    real = remote._fetched

    def fetched(url: str, start: int, end: int) -> bytes:
        requests.append((start, end))
        return real(url, start, end)

    monkeypatch.setattr(remote, "_fetched", fetched)
    files, data = Files(manifest), CONTENT["a/1.bin"]
    assert b"".join(files.read("a/1.bin", start, 512) for start in range(0, len(data), 512)) == data
    assert requests == [(0, len(data))]


def test_a_hash_changes_with_the_object_and_reads_nothing(manifest: Path, bucket: Any, tmp_path: Path) -> None:
    before = {name: Files(manifest).sha256(name) for name in CONTENT}
    bucket.pipe("bucket/mine/2.txt", b"TWO")
    remote.write("s3://bucket/mine", tmp_path / "later.jsonl")
    after = {name: Files(tmp_path / "later.jsonl").sha256(name) for name in CONTENT}
    assert {name for name in CONTENT if before[name] != after[name]} == {"2.txt"}
    with pytest.raises(Rejected, match=r"CHANGED.*2\.txt.*run `ldm manifest` again"):
        Files(manifest).read("2.txt")
    assert Files(manifest).read("a/1.bin") == CONTENT["a/1.bin"]


def test_an_object_that_is_gone_is_rejected_but_a_place_that_is_gone_ends_all(
    manifest: Path, bucket: Any, tmp_path: Path
) -> None:
    bucket.rm("bucket/mine/2.txt")
    with pytest.raises(Rejected, match="UNREADABLE"):
        Files(manifest).read("2.txt")
    nowhere = tmp_path / "nowhere.jsonl"
    lines = ['{"url": "http://127.0.0.1:1/mine"}', '{"name": "2.txt", "size": 3, "etag": "x"}']
    nowhere.write_text("\n".join(lines))
    with pytest.raises(MachineError, match=r"expected a place that answers\nfix: see to network"):
        Files(nowhere).read("2.txt")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/none", "no files"),
        ("s3://no-such-bucket/x", "does not exist"),
        ("foo://x", "Protocol not known: foo"),
        ("big/folder", "no URL"),
    ],
)
def test_a_place_without_files_is_refused(bucket: Any, tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{words}.*; expected "):
        remote.write(url, tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        (["{}"], ":1: Field required"),
        ([""], ":1: Invalid JSON"),
        (['{"url": "s3://x"}', '{"name": "a", "size": -1, "etag": "x"}'], ":2: Input should be greater"),
        (['{"url": "s3://x"}', '{"name": "a", "size": 1, "etag": "x"}', "{"], ":3: Invalid JSON"),
    ],
)
def test_a_manifest_that_is_none_is_refused_with_its_line(tmp_path: Path, lines: list[str], where: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=f"{path}{where}.*\nfix: write it again: ldm manifest URL"):
        remote.url_of(path), Files(path).list()


def test_the_command_writes_a_manifest_where_dvc_looks(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.prepare_data import FOLDER, write_params

    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, FOLDER)
    assert cli.main(["manifest", "s3://bucket/mine"]) == 0
    assert capsys.readouterr().out == "3 files -> data/source/mine.jsonl; prepare.corpus.directory: mine.jsonl\n"
    written = (tmp_path / "data/source/mine.jsonl").read_text()
    assert written == manifest.read_text()
    assert [json.loads(line).get("size") for line in written.splitlines()] == [None, 3, 10_240, 0]
    assert cli.main(["manifest", "s3://bucket/mine"]) == 2
    assert "it exists" in capsys.readouterr().err
    assert cli.main(["manifest", "s3://bucket/mine", "--overwrite"]) == 0
    assert cli.main(["manifest", "s3://bucket/mine", "--output", "x.txt"]) == 2
    assert command._path("s3://bucket/my data/") == Path("data/source/my-data.jsonl")


def test_without_the_package_for_s3_other_places_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("botocore", "botocore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(remote, "_opened", lambda _: (SimpleNamespace(find=_missing), ""))
    with pytest.raises(ConfigError, match="no such place"):
        list(remote.listed("file:///nowhere"))


def _missing(*_: object, **__: object) -> None:
    raise FileNotFoundError(2, "no such place")


def test_a_manifest_is_written_as_a_whole_or_not_at_all(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, real = manifest.read_bytes(), Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        real(path, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        remote.write("s3://bucket/mine/", manifest)
    assert manifest.read_bytes() == before and list(tmp_path.iterdir()) == [manifest]


def test_a_file_that_a_manifest_does_not_list_is_rejected_and_one_file_is_no_folder(manifest: Path) -> None:
    for action in (Files(manifest).read, Files(manifest).sha256):
        with pytest.raises(Rejected, match=r"3\.txt: not in the manifest mine\.jsonl"):
            action("3.txt")
    with pytest.raises(ConfigError, match=r"a file; expected a folder or prefix .*\n.*s3://bucket/mine$"):
        remote.write("s3://bucket/mine/2.txt", manifest)


def test_linked_files_are_listed_as_what_they_lead_to(tmp_path: Path) -> None:
    """As in the caches of DVC and Hugging Face."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "cached").write_bytes(b"four")
    (tmp_path / "mine/a.tar").symlink_to(tmp_path / "cached")
    (tmp_path / "mine/b.tar").write_bytes(b"seven..")
    remote.write(f"file://{tmp_path}/mine", tmp_path / "mine.jsonl")
    files = Files(tmp_path / "mine.jsonl")
    assert files.list() == [File("a.tar", 4), File("b.tar", 7)] and files.read("a.tar") == b"four"
    remote._check.cache_clear()
    (tmp_path / "cached").write_bytes(b"FIVE!")
    with pytest.raises(Rejected, match="CHANGED"):
        files.read("a.tar")


@pytest.mark.parametrize("target", ["folder", "nothing"])
def test_links_to_no_file_and_names_that_are_not_utf8_are_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine/a.tar").symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match=r"mine/a\.tar: a link to no file"):
        remote.write(f"file://{tmp_path}/mine", tmp_path / "mine.jsonl")
    (tmp_path / "mine/a.tar").unlink()
    (tmp_path / os.fsdecode(b"mine/n\xff.png")).write_bytes(b"x")
    with pytest.raises(ConfigError, match="a name that is not UTF-8"):
        remote.write(f"file://{tmp_path}/mine", tmp_path / "mine.jsonl")
