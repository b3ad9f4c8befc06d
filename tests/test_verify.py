"""`ldm verify` on a real run of the pipeline: no false alarm, and every kind of damage named with both hashes."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from ldm.core import artifact
from ldm.tools import cli, verify
from tests.import_closure import ROOT
from tests.kinds import KINDS
from tests.repository import Repository, setting

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
    """Flip a bit, keeping mode and times, which are what DVC trusts; MD5 before and after."""
    before, data, status = md5(path), bytearray(path.read_bytes()), path.stat()
    data[len(data) // 3] ^= 16
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return before, md5(path)


def do(root: Path, fix: str) -> None:
    """Type what a fix says."""
    for command in fix.split("; "):
        Repository.at(root).run(*command.split())


def cached(root: Path, oid: str) -> Path:
    return root / ".dvc/cache/files/md5" / oid[:2] / oid[2:]


def listing_of(root: Path, out: str) -> str:
    lock: dict[str, Any] = YAML(typ="safe").load((root / "dvc.lock").read_text())
    return next(o["md5"] for stage in lock["stages"].values() for o in stage.get("outs", []) if o["path"] == out)


def test_a_good_tree_raises_no_alarm(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Repository.at(root).commit()
    code, said = run(capsys)
    assert code == 0 and said.startswith("OK: ") and "every byte as the commit says (HEAD, " in said
    report = verify.local()
    files = [path for path in (root / "data").rglob("*") if path.is_file()]
    brought = {"source", "models"}
    outs = [p for p in files if p.relative_to(root / "data").parts[0] not in brought and p.name != ".gitignore"]
    assert report.num_objects == len(outs) > 50
    assert report.num_bytes == sum(path.stat().st_size for path in outs)


def test_a_changed_file_of_the_workspace(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, found = flip(root / MODEL)
    code, said = run(capsys)
    assert code == 4
    assert f"{root / MODEL}: the workspace has MD5 {found}; expected MD5 {expected}" in said
    assert "model.safetensors: SHA-256" in said, "its reader refuses it as well"
    fix = f"rm -f {root / MODEL}; dvc checkout {root / MODEL}"
    assert f"fix: the cache has a good copy: {fix}" in said
    do(root, fix)
    assert run(capsys)[0] == 0


def test_a_changed_object_of_the_cache(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cached(root, md5(root / MODEL))
    expected, found = flip(path)
    code, said = run(capsys)
    assert code == 4
    assert f"{root / MODEL}: the cache has MD5 {found}; expected MD5 {expected}" in said
    told = re.search("fix: the workspace has a good copy: (.*)", said)
    assert told is not None
    do(root, told[1])
    assert run(capsys)[0] == 0
    path.unlink()
    assert "the cache has no file" in run(capsys)[1]


def test_a_file_that_is_bad_everywhere_is_fetched_from_a_remote_or_made_again(
    root: Path, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(cached(root, md5(root / MODEL)))
    flip(root / MODEL)
    code, said = run(capsys)
    assert code == 4 and "no good copy in the cache or in remotes []: ask whoever has one, or dvc repro" in said
    copy = Repository.at(root)
    copy.run("dvc", "remote", "add", "--default", "team", str(root.parent / "remote"))
    shutil.copytree(repository.root / ".dvc/cache/files", root.parent / "remote/files", dirs_exist_ok=True)
    told = re.search("fix: remote team has a good copy: (.*)", run(capsys)[1])
    assert told is not None
    do(root, told[1])
    assert run(capsys)[0] == 0


def test_the_lock_of_the_workspace_is_compared_with_that_of_head(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Repository.at(root).run("git", "rm", "--cached", "--quiet", "--ignore-unmatch", "dvc.lock")
    Repository.at(root).run("git", "commit", "--quiet", "--allow-empty", "--message", "no dvc.lock")
    code, said = run(capsys)
    assert code == 0 and "every byte as the workspace's dvc.lock and .dvc files say" in said
    assert re.search(r"dvc\.lock differs from HEAD \(\w{7}\) in check \(only here\), embed_text \(only here\), ", said)
    Repository.at(root).commit()
    lock = root / "dvc.lock"
    before = lock.read_text()
    lock.write_text(before.replace(listing_of(root, "data/samples"), f"{'0' * 32}.dir"))
    said = run(capsys)[1]
    assert "in evaluate (deps), model (deps), sample (outs)\n" in said and "check (" not in said
    lock.write_text(before)
    Repository.at(root).run("git", "update-ref", "-d", "HEAD")
    code, said = run(capsys)
    assert code == 0 and said.startswith("OK: ") and "every byte as the workspace's dvc.lock says\n" in said
    assert said.endswith("dvc.lock is not compared with HEAD: Empty git repo\n")


def test_a_listing_of_a_folder_is_made_again_from_the_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even if params were changed since: dvc.lock must not say that they made the results."""
    oid, params = listing_of(root, "data/latents"), root / "params.yaml"
    path, lock = cached(root, oid), (root / "dvc.lock").read_bytes()
    params.write_text(setting(encode_latents__statistics_tolerance=0.75)(params.read_text()))
    before = path.read_bytes()
    for damage in (flip, lambda path: path.unlink()):
        damage(path)
        code, said = run(capsys)
        assert code == 4 and f"{root / 'data/latents'}: the listing in " in said and f"expected MD5 {oid}" in said
        assert said.count("expected") == 1, "the files are checked all the same"
        told = re.search("fix: every file of the folder is right, its listing is made again from them: (.*)", said)
        assert told is not None and "dvc commit -f encode_latents" in told[1]
        do(root, told[1])
        assert path.read_bytes() == before and (root / "dvc.lock").read_bytes() == lock
        assert run(capsys)[0] == 0
    assert not (root / "dvc.lock.kept").exists()


def test_a_listing_is_not_made_again_from_a_folder_that_is_changed_as_well(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oid = listing_of(root, "data/latents")
    flip(cached(root, oid))
    flip(next((root / "data/latents/val").glob("*.safetensors")))
    code, said = run(capsys)
    assert code == 4 and f"{root / 'data/latents'}: the listing in " in said and f"expected MD5 {oid}" in said
    assert "dvc commit" not in said and "does not record" not in said, "nobody knows what the folder should hold"


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
    artifact.write_json(folder / "passport.json", artifact.sealed(passport))
    Repository.at(root).run("dvc", "commit", "--force", "encode_latents")
    code, said = run(capsys)
    there = artifact.read_passport(root / "data/autoencoder", KINDS["autoencoder"]).content_sha256
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
    told = re.search(
        rf"good copy: delete {object_path}(?:, \S+\.dir){{2}} from the remote; rm -rf (.*); dvc push", said
    )
    assert told is not None
    assert "tmp-of-a-push: no commit known here uses it" in said
    for paths in re.findall(r"good copy: delete (.+) from the remote", said):
        for path in paths.split(", "):
            Path(path).unlink(missing_ok=True)
    shutil.rmtree(told[1])
    copy.run("dvc", "push")
    assert run(capsys, "--remote", "team")[0] == 0


def test_results_of_another_commit_that_were_never_pushed_are_no_obstacle(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A colleague's clone: HEAD~1 has a dvc.lock whose folders are in no cache and no remote."""
    copy = Repository.at(root)
    lock = (root / "dvc.lock").read_text()
    oid = listing_of(root, "data/clip").removesuffix(".dir")
    (root / "dvc.lock").write_text(lock.replace(oid, "0" * 32))
    copy.commit()
    (root / "dvc.lock").write_text(lock)
    copy.run("dvc", "remote", "add", "--default", "team", str(root.parent / "remote"))
    copy.commit()
    copy.run("dvc", "push")
    code, said = run(capsys, "--remote")
    assert code == 0 and said.startswith("OK: ")


def test_an_object_that_cannot_be_read_is_a_finding(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cached(root, md5(root / MODEL))
    path.unlink()
    path.mkdir()
    code, said = run(capsys)
    assert code == 4 and "the cache has unreadable: " in said


def test_a_frozen_training_may_have_other_inputs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `frozen: true` its images may change: latents are what must follow, and only new shards are encoded."""
    copy = Repository.at(root)
    stages = root / "dvc.yaml"
    for name in ("train_autoencoder", "train_clip"):
        stages.write_text(stages.read_text().replace(f"  {name}:\n", f"  {name}:\n    frozen: true\n"))
    params = root / "params.yaml"
    corpus = YAML(typ="safe").load(params.read_text())["prepare"]["corpus"]
    per_shard = YAML(typ="safe").load(params.read_text())["prepare"]["num_samples_per_shard"]
    before = {path.name for path in (root / "runs/encode_latents").rglob("unit-*")}
    params.write_text(setting(prepare__corpus__num_train=corpus["num_train"] + per_shard)(params.read_text()))
    copy.run("dvc", "repro", "encode_latents")
    after = {path.name for path in (root / "runs/encode_latents").rglob("unit-*")}
    assert len(after - before) <= 2 and len(before & after) >= len(before) - 1, "one shard is new, the last one full"
    code, said = run(capsys)
    assert "autoencoder made with images" not in said and "made with images_train" in said, said
    assert code == 4, "the samples are of before"


def test_a_file_that_may_not_be_read_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == root / MODEL:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    code, said = run(capsys)
    assert code == 5
    assert said.startswith(f"{root / MODEL}: Permission denied; expected access for this user\nfix: ")
    assert said.count("\n") == 2


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("dvc.lock", "a: [\n", 4),
        ("dvc.lock", "schema: '2.0'\nstages: 3\n", 4),
        ("dvc.lock", "", 4),
        ("dvc.yaml", "stages: [\n", 2),
        ("dvc.yaml", "stages:\n  a:\n    cmd: x\n    outs: ['${paths.none}']\n", 2),
        (".dvc/config", "[x", 2),
    ],
)
def test_files_that_dvc_cannot_read_are_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, code: int
) -> None:
    (root / name).write_text(text)
    found, said = run(capsys)
    assert found == code and said.count("\n") == 2 and "; expected " in said and "\nfix: " in said


def test_without_git_it_is_one_line_or_only_the_lock_counts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / ".git")
    code, said = run(capsys)
    assert code == 2 and said.count("\n") == 2 and "is not a git repository; expected a git repository\nfix: " in said
    Repository.at(root).run("dvc", "config", "core.no_scm", "true")
    code, said = run(capsys)
    assert code == 0 and said.endswith("every byte as dvc.lock says (there is no git to compare it with)\n")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository that records a file and a folder, and two remotes that do not answer."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    (tmp_path / "empty").touch()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    shutil.copy(ROOT / "paths.yaml", tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("mine/b", "a"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    Repository.at(tmp_path).run("git", "init", "--quiet")
    with Repo.init() as repo:
        repo.add(["a", "mine"])
    with (tmp_path / ".dvc/config").open("a") as file:
        file.write("['remote \"bucket\"']\n    url = s3://nobody/x\n['remote \"other\"']\n    url = gs://nobody/x\n")
    return tmp_path


def test_a_remote_that_does_not_answer_is_one_line(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, found in (("bucket", "NoCredentialsError: "), ("other", "ImportError: gs is supported, .*'dvc-gs'")):
        code, said = run(capsys, "--remote", name)
        assert code == 5 and re.search(rf"{found}.*; expected a remote that answers\nfix: ", said)
        assert said.count("\n") == 2


def test_a_remote_that_does_not_answer_counts_as_one_without_a_good_copy(small: Path) -> None:
    flip(small / "a")
    flip(cached(small, hashlib.md5(b"a").hexdigest()))
    problems = [error for error in verify.local(small).problems if error.args[0] == str(small / "a")]
    assert len(problems) == 2
    assert all("no good copy in the cache or in remotes ['bucket', 'other']" in str(error) for error in problems)


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that logs nothing."""

    def log_message(self, *_: object) -> None:
        pass


def test_files_of_a_web_server_are_verified_though_it_cannot_be_listed(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small / ".dvc/cache/files", small / "served/files")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=small / "served")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with (small / ".dvc/config").open("a") as file:
            file.write(f"['remote \"web\"']\n    url = http://127.0.0.1:{server.server_port}\n")
        code, said = run(capsys, "--remote", "web")
        assert code == 0 and said.startswith("OK: 2 files, 0.0 MB") and "leftovers are not known: http://" in said
        path = small / "served/files" / cached(small, md5(small / "a")).relative_to(small / ".dvc/cache/files")
        expected, found = flip(path)
        code, said = run(capsys, "--remote", "web")
        assert code == 4 and f"has MD5 {found}; expected MD5 {expected}" in said
        server.shutdown()


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1" || exit 99
touch x 2> /dev/null && exit 98
"$2" -m ldm.tools.cli check && "$2" -m ldm.tools.cli verify
"""


def test_a_tree_that_may_not_be_written_is_verified(root: Path) -> None:
    """Also without .dvc/tmp, which DVC makes in every repository that it opens."""
    shutil.rmtree(root / ".dvc/tmp")
    command = ["unshare", "-Urm", "bash", "-c", READ_ONLY, "bash", str(root), sys.executable]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("nothing can be mounted here")
    assert done.returncode == 0 and done.stderr == "", "no terminal: no progress"
    assert "is complete and consistent" in done.stdout and "\nOK: " in done.stdout
