"""`ldm verify` on a real run of the pipeline: no false alarm, and every kind of damage named with both hashes."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ldm import artifact, cli, verify
from tests.repository import Repository

MODEL = "data/unet/model.safetensors"


@pytest.fixture
def root(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository, to be damaged."""
    shutil.copytree(repository.root, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code, and all that was said."""
    capsys.readouterr()
    code = cli.main(["verify", *arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def flip(path: Path) -> tuple[str, str]:
    """Flip a bit, keeping the file's mode, which is what DVC trusts; MD5 before and after."""
    before, data, mode = md5(path), bytearray(path.read_bytes()), path.stat().st_mode
    data[len(data) // 3] ^= 16
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)
    return before, md5(path)


def cached(root: Path, oid: str) -> Path:
    return root / ".dvc/cache/files/md5" / oid[:2] / oid[2:]


def listing_of(root: Path, out: str) -> str:
    lock: dict[str, Any] = YAML(typ="safe").load((root / "dvc.lock").read_text())
    return next(o["md5"] for stage in lock["stages"].values() for o in stage.get("outs", []) if o["path"] == out)


def test_a_good_tree_raises_no_alarm(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys)
    assert code == 0 and said.startswith("OK: ") and "every byte as the commit says" in said
    report = verify.local()
    files = [path for path in (root / "data").rglob("*") if path.is_file()]
    outs = [p for p in files if p.parent.name not in ("source", "models") and p.name != ".gitignore"]
    assert report.num_objects == len(outs) > 50
    assert report.num_bytes == sum(path.stat().st_size for path in outs)


def test_a_changed_file_of_the_workspace(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, found = flip(root / MODEL)
    code, said = run(capsys)
    assert code == 4
    assert f"{root / MODEL}: the workspace has MD5 {found}; expected MD5 {expected}" in said
    assert f"fix: the cache has a good copy: dvc checkout --force {root / MODEL}" in said
    assert "model.safetensors: SHA-256" in said, "the passport is not believed either"


def test_a_changed_object_of_the_cache(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cached(root, md5(root / MODEL))
    expected, found = flip(path)
    code, said = run(capsys)
    assert code == 4
    assert f"{root / MODEL}: the cache has MD5 {found}; expected MD5 {expected}" in said
    assert f"fix: the workspace has a good copy: rm -f {path}; dvc commit --force train_unet" in said
    path.unlink()
    assert "the cache has no file" in run(capsys)[1]


def test_a_file_that_is_bad_everywhere_is_fetched_from_a_remote_or_made_again(
    root: Path, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(cached(root, md5(root / MODEL)))
    flip(root / MODEL)
    code, said = run(capsys)
    assert code == 4 and "no good copy here or in remotes []: ask whoever has one, or dvc repro --force" in said
    copy = Repository.at(root)
    copy.run("dvc", "remote", "add", "--default", "team", str(root.parent / "remote"))
    shutil.copytree(repository.root / ".dvc/cache/files", root.parent / "remote/files", dirs_exist_ok=True)
    assert "fix: remote team has a good copy: rm -f" in run(capsys)[1]


def test_a_changed_listing_of_a_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oid = listing_of(root, "data/latents")
    flip(cached(root, oid))
    code, said = run(capsys)
    assert code == 4 and f"{root / 'data/latents'}: the listing in " in said and f"expected MD5 {oid}" in said


def test_missing_and_unrecorded_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / MODEL).unlink()
    (root / "data/clip/mine.txt").write_text("")
    code, said = run(capsys)
    assert code == 4 and f"{root / MODEL}: the workspace has no file; expected MD5" in said
    assert f"{root / 'data/clip/mine.txt'}: a file that dvc.lock does not record" in said


def test_a_passport_that_tells_of_other_inputs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is as recorded, but the record is of artefacts that were not made from each other."""
    folder = root / "data/latents/val"
    passport = json.loads((folder / "passport.json").read_text())
    passport["inputs"]["autoencoder"] = "0" * 64
    os.chmod(folder / "passport.json", 0o644)
    artifact.write_json(folder / "passport.json", passport)
    Repository.at(root).run("dvc", "commit", "--force", "encode_latents")
    code, said = run(capsys)
    there = artifact.read_passport(root / "data/autoencoder", "autoencoder").content_sha256
    assert code == 4 and f"made with autoencoder {'0' * 64}; expected autoencoder {there}" in said
    assert said.count("expected") == 1


def test_a_remote_with_missing_corrupt_and_leftover_objects(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, remote = Repository.at(root), root.parent / "remote"
    assert run(capsys, "--remote")[0] == 2
    copy.run("dvc", "remote", "add", "--default", "team", str(remote))
    assert run(capsys, "--remote", "other")[0] == 2
    copy.run("dvc", "push")
    code, said = run(capsys, "--remote")
    assert code == 0 and said.startswith("OK: ")
    oid, gone = md5(root / MODEL), md5(root / "data/samples/grid.png")
    object_path = remote / "files/md5" / oid[:2] / oid[2:]
    _, found = flip(object_path)
    (remote / "files/md5" / gone[:2] / gone[2:]).unlink()
    (remote / "files/md5/00").mkdir(exist_ok=True)
    (remote / "files/md5/00/tmp-of-a-push").write_text("x")
    code, said = run(capsys, "--remote", "team")
    assert code == 4
    assert f"has MD5 {found}; expected MD5 {oid}" in said and f"has no file; expected MD5 {gone}" in said
    told = re.search(rf"good copy: delete {object_path}, (\S+\.dir) from the remote; rm -rf (.*); dvc push", said)
    assert told is not None
    assert "tmp-of-a-push: no commit uses it" in said
    for path in re.findall(r"good copy: delete (\S+), (\S+\.dir) from", said):
        for name in path:
            Path(name).unlink(missing_ok=True)
    shutil.rmtree(told[2])
    copy.run("dvc", "push")
    assert run(capsys, "--remote", "team")[0] == 0
