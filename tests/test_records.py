"""What commits record of results, whichever branch or experiment they are of."""

import subprocess
from pathlib import Path

from ldm.tools import records


def _git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def _commit(root: Path, name: str, *hashes: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("outs:\n" + "".join(f"- md5: {md5}\n  size: 3\n" for md5 in hashes))
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", "state")


def test_hashes_are_those_of_all_commits_branches_merges_and_experiments(tmp_path: Path) -> None:
    a, b, c, d, e, f = (letter * 32 for letter in "abcdef")
    _git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    _commit(tmp_path, "dvc.lock", a, f"{b}.dir")
    _git(tmp_path, "checkout", "--quiet", "-b", "other")
    _commit(tmp_path, "sub/images.dvc", c)
    _git(tmp_path, "checkout", "--quiet", "main")
    _commit(tmp_path, "dvc.lock", d)
    _git(tmp_path, "merge", "--no-commit", "other")
    _commit(tmp_path, "dvc.lock", e)
    _git(tmp_path, "checkout", "--quiet", "--detach")
    _commit(tmp_path, "optional/dvc.lock", f)
    _git(tmp_path, "update-ref", "refs/exps/1/name", "HEAD")
    _git(tmp_path, "checkout", "--quiet", "main")
    (tmp_path / "notes.md").write_text(f"md5: {'0' * 32}\n")
    assert records.hashes(tmp_path) == {a, f"{b}.dir", c, d, e, f}


def test_a_repository_without_records_has_none(tmp_path: Path) -> None:
    _git(tmp_path, "init", "--quiet")
    assert records.hashes(tmp_path) == set()


def test_changes_name_stages_and_what_differs() -> None:
    here = {"same": {"cmd": "a"}, "ours": {"cmd": "b"}, "both": {"cmd": "c", "deps": [1]}, "file.dvc": [1]}
    committed = {"same": {"cmd": "a"}, "both": {"cmd": "c", "deps": [2]}, "file.dvc": [2], "theirs": {"cmd": "d"}}
    expected = ["both (deps)", "file.dvc", "ours (only here)", "theirs (only in HEAD)"]
    assert records.changes(here, committed) == expected
