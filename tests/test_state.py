import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.compute import state
from ldm.compute.saved import State, check, read
from ldm.compute.state import Run
from ldm.core import artifact, locks
from ldm.core.errors import IntegrityError, MachineError, NumericsError
from ldm.core.params import MachineParams
from ldm.tools import runs, watch
from tests.training_data import PLAIN

ROOT = Path(__file__).resolve().parents[1]


def at(step: int) -> State:
    return State(step, {"w": torch.full((3, 2), float(step)), "count": torch.tensor(step)}, {"rows": [step, 0.1]})


def opened(tmp_path: Path, **fingerprint: object) -> Run:
    run = Run(tmp_path, "train", fingerprint)
    run.open()
    return run


def newest(run: Run) -> State | None:
    saved = run.choose()
    return None if saved is None else read(saved)


def same(a: State | None, b: State) -> bool:
    assert a is not None
    return a.step == b.step and a.values == b.values and all(torch.equal(a.tensors[k], t) for k, t in b.tensors.items())


def test_a_state_comes_back_and_old_ones_go(tmp_path: Path):
    run = opened(tmp_path)
    assert newest(run) is None
    for step in (1, 2, 10):
        run.commit(at(step), num_kept=2)
    assert same(newest(run), at(10))
    assert sorted(p.name for p in run.directory.glob("step-*")) == ["step-000000002", "step-000000010"]


@pytest.mark.parametrize("num_kept", [1, 2])
def test_a_new_state_takes_the_place_of_damaged_ones_with_higher_steps(tmp_path: Path, num_kept: int):
    run = opened(tmp_path)
    for step in (5, 6):
        run.commit(at(step), num_kept=num_kept)
    for path in state.states_of(run.directory):
        (path / "tensors.safetensors").write_bytes(b"damaged")
    assert newest(run) is None
    run.commit(at(3), num_kept=num_kept)
    assert same(newest(run), at(3)) and [path.name for path in state.states_of(run.directory)] == ["step-000000003"]
    run.commit(at(4), num_kept=num_kept)
    assert same(newest(run), at(4)) and len(state.states_of(run.directory)) == num_kept


@pytest.mark.parametrize("name", ["tensors.safetensors", "values.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_state_is_passed_over(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, damage: str):
    run = opened(tmp_path)
    run.commit(at(1), num_kept=3)
    run.commit(at(2), num_kept=3)
    path = run.directory / "step-000000002" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-3])
    assert same(newest(run), at(1))
    assert "step-000000002" in capfd.readouterr().err
    run.commit(at(2), num_kept=3)
    assert same(newest(run), at(2))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_state_that_cannot_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
):
    run = opened(tmp_path)
    for step in (1, 2):
        run.commit(at(step), num_kept=3)
    real = artifact.check_file

    def fails(path: Path, sha256: str) -> None:
        if path.parent.name == "step-000000002":
            raise OSError(number, os.strerror(number))
        real(path, sha256)

    monkeypatch.setattr(artifact, "check_file", fails)
    assert same(newest(run), at(1))
    assert os.strerror(number) in capfd.readouterr().err


def test_exactly_the_chosen_state_is_read(tmp_path: Path):
    run = opened(tmp_path)
    run.commit(at(1), num_kept=3)
    chosen = run.choose()
    assert chosen is not None and same(read(chosen), at(1))
    run.commit(State(1, {"w": torch.ones(1)}, {}), num_kept=3)
    with pytest.raises(IntegrityError, match=f"expected {chosen.manifest_sha256}"):
        read(chosen)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, point: int, error: BaseException) -> list[str]:
    """Raise at the n-th of the calls through which a commit reaches the disk."""
    calls: list[str] = []

    def wrap(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            calls.append(name)
            if len(calls) == point:
                raise error
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for owner, name in [(os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "write_text")]:
        wrap(owner, name)
    wrap(artifact, "write_tensors")
    return calls


NUM_POINTS = 9


def test_the_order_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = opened(tmp_path)
    calls = interrupt_at(monkeypatch, -1, KeyboardInterrupt())
    run.commit(at(1), num_kept=1)
    # Every file is on the disk before the manifest is, that before the folder, and the folder before its name is final.
    before = ["mkdir", "write_tensors", "write_text", "fsync", "fsync", "write_text", "fsync", "fsync"]
    assert calls == [*before, "rename", "fsync"]
    assert len(calls) == NUM_POINTS + 1


@pytest.mark.parametrize("point", range(1, NUM_POINTS + 2))
@pytest.mark.parametrize("kind", ["kill", "disk full"])
def test_an_interrupted_commit_harms_nothing(tmp_path: Path, point: int, kind: str):
    run = opened(tmp_path)
    run.commit(at(1), num_kept=1)
    error = OSError(28, "No space left on device") if kind == "disk full" else KeyboardInterrupt()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, point, error)
        with pytest.raises(MachineError if kind == "disk full" else KeyboardInterrupt) as caught:
            run.commit(at(2), num_kept=1)
    if kind == "disk full":
        assert "bytes are free" in str(caught.value) and "a state of 32 bytes" in str(caught.value)
    run.close()
    again = opened(tmp_path)
    after = newest(again)
    # Once the name is final the state counts, even if the folder entry was not yet forced to the disk.
    assert same(after, at(2 if point == NUM_POINTS + 1 else 1))
    again.commit(at(3), num_kept=1)
    assert same(newest(again), at(3))
    assert not list(again.directory.glob(".*"))


def test_a_kill_while_a_run_is_opened_leaves_its_fingerprint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened(tmp_path, **{"params.rate": 0.1, "beside.every": 1}).close()
    real = Path.write_text

    def cut(path: Path, text: str, **options: Any) -> None:
        real(path, text[:5], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, **{"params.rate": 0.1, "beside.every": 2})
    monkeypatch.undo()
    (path,) = tmp_path.rglob("fingerprint.json")
    assert json.loads(path.read_text())["beside.every"] == 1
    opened(tmp_path, **{"params.rate": 0.2})


def test_a_thread_writes_a_copy_while_the_weights_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = opened(tmp_path)
    may_go_on, real = threading.Event(), artifact.write_tensors

    def waits(path: Path, tensors: Mapping[str, Tensor]) -> None:
        may_go_on.wait(60)
        real(path, tensors)

    monkeypatch.setattr(artifact, "write_tensors", waits)
    weights, rows = torch.zeros(4), [1.0]
    run.commit(State(1, {"w": weights}, {"rows": rows}), num_kept=2, in_background=True)
    weights += 1
    rows.append(2.0)
    assert newest(run) is None, "it is being written"
    may_go_on.set()
    run.commit(State(2, {"w": weights}, {"rows": rows}), num_kept=2, in_background=True)
    run.settle()
    first, second = (read(check(path)) for path in state.states_of(run.directory))
    assert (first.tensors["w"].tolist(), first.values) == ([0] * 4, {"rows": [1.0]})
    assert (second.tensors["w"].tolist(), second.values) == ([1] * 4, {"rows": [1.0, 2.0]})


@pytest.mark.parametrize("then", ["commit", "settle"])
def test_an_error_of_the_writing_thread_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], then: str):
    run = opened(tmp_path)
    run.commit(at(1), num_kept=1, in_background=True)
    run.settle()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 4, OSError(28, "No space left on device"))
        run.commit(at(2), num_kept=1, in_background=True)
        if then == "settle":
            with pytest.raises(MachineError, match="bytes are free"):
                run.settle()
            assert same(newest(run), at(1))
        else:
            run.commit(at(3), num_kept=1, in_background=True)
            assert same(newest(run), at(3)), "the disk has room again, and no thread is trusted with it"
            assert "bytes are free" in (said := capsys.readouterr().err) and "step 3 is written instead" in said
    run.commit(at(4), num_kept=1, in_background=True)
    run.close()  # the directory is free when all is written
    assert same(newest(run), at(4)) and not list(run.directory.glob(".*.building"))


def test_a_disk_that_stays_full_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = opened(tmp_path)
    run.commit(at(1), num_kept=1)
    monkeypatch.setattr(artifact, "write_tensors", full)
    run.commit(at(2), num_kept=1, in_background=True)
    with pytest.raises(MachineError, match="bytes are free"):
        run.commit(at(3), num_kept=1, in_background=True)
    assert same(newest(run), at(1))


def full(path: Path, _: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("fsync", "left"), [(1, 1), (4, 1), (5, 2)])
def test_a_kill_while_a_thread_writes_leaves_a_whole_state(tmp_path: Path, fsync: int, left: int):
    """At the first file, at the folder before it has its name, and after it has it."""
    run = opened(tmp_path)
    run.commit(at(1), num_kept=1)
    run.close()
    if (child := os.fork()) == 0:
        writing = opened(tmp_path)
        real, calls = os.fsync, [0]

        def kills(file: int) -> None:
            calls[0] += 1
            if calls[0] == fsync:
                os.kill(os.getpid(), signal.SIGKILL)
            real(file)

        os.fsync = kills
        writing.commit(at(2), num_kept=1, in_background=True)
        writing.settle()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    again = opened(tmp_path)
    assert same(newest(again), at(left)) and not list(again.directory.glob(".*.building"))


def test_a_nonfinite_state_is_never_committed(tmp_path: Path):
    run = opened(tmp_path)
    run.commit(at(1), num_kept=1)
    bad = State(2, {"w": torch.tensor([1.0, float("nan")])}, {})
    with pytest.raises(NumericsError, match="w is not finite in step-000000002"):
        run.commit(bad, num_kept=1)
    assert same(newest(run), at(1))


def test_a_second_run_in_the_directory_is_refused(tmp_path: Path):
    run = opened(tmp_path)
    other = Run(tmp_path, "train", {})
    with pytest.raises(MachineError, match=rf"pid {os.getpid()} on .* since \d{{4}}-"):
        other.open()
    run.close()
    other.open()
    other.remove()
    assert not other.directory.exists()


def test_the_lock_falls_with_its_process(tmp_path: Path):
    code = "import sys, os, signal; from ldm.compute.state import Run; from pathlib import Path\n"
    code += "r = Run(Path(sys.argv[1]), 'train', {}); r.open(); os.kill(os.getpid(), signal.SIGKILL)"
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    opened(tmp_path).close()


def test_a_fresh_run_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = opened(tmp_path, **{"params.seed": 0, "params.width": 8})
    assert capsys.readouterr().out == ""
    second = opened(tmp_path, **{"params.seed": 1, "params.width": 8})
    assert first.directory != second.directory
    out = capsys.readouterr().out
    assert "params.seed: 0 -> 1" in out and "width" not in out
    second.close()
    opened(tmp_path, **{"params.seed": 1, "params.width": 8})
    assert capsys.readouterr().out == ""


def test_units_are_kept_until_they_are_not_needed(tmp_path: Path):
    first = opened(tmp_path, **{"params.seed": 0})
    first.keep("old", {"w": torch.ones(2)})
    first.close()
    run = opened(tmp_path, **{"params.seed": 1})
    assert run.kept("a") is None
    for key in ("b", "a"):
        run.keep(key, {"w": torch.full((2,), ord(key))}, {"key": key})
    run.keep("b", {"w": torch.zeros(2)}, {"key": "b again"})
    kept = run.kept("b")
    assert kept is not None and kept.values == {"key": "b again"} and kept.tensors["w"].tolist() == [0, 0]
    path, sha256 = run.file("b")
    assert artifact.sha256_file(path) == sha256 and artifact.open_tensors(path)["w"].tolist() == [0, 0]
    held = Run(tmp_path, "train", {"params.seed": 2})
    held.open()
    run.retain(["b"])
    assert [path.name for path in run.directory.glob("unit-*")] == ["unit-b"]
    assert not first.directory.exists() and held.directory.exists(), "a run that goes on is left alone"


@pytest.mark.parametrize("name", ["tensors.safetensors", "values.json", "manifest.json"])
def test_a_damaged_unit_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str):
    run = opened(tmp_path)
    run.keep("a", {"w": torch.ones(2)})
    path = run.directory / "unit-a" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    assert run.kept("a") is None
    assert "unit-a" in capfd.readouterr().err
    run.keep("a", {"w": torch.ones(2)})
    assert run.kept("a") is not None


MACHINE: dict[str, Any] = {"threads": 1, "num_workers": 0, "attention": "math", "compile": False} | PLAIN


def machine(**changes: Any) -> MachineParams:
    kept = {"keep_finished_states": False, "num_kept_runs": None, "max_run_age_days": None, "trackers": []}
    return MachineParams(**{**MACHINE, **kept, **changes})


def test_a_value_that_no_step_depends_on_is_no_other_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = opened(tmp_path, **{"params.seed": 0, "beside.save_every_steps": 5})
    first.commit(at(1), num_kept=1)
    first.close()
    again = opened(tmp_path, **{"params.seed": 0, "beside.save_every_steps": 6})
    assert same(newest(again), at(1)) and capsys.readouterr().out == ""
    assert json.loads((again.directory / "fingerprint.json").read_text())["beside.save_every_steps"] == 6


def test_a_fresh_run_says_how_to_go_on_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = opened(tmp_path, **{"params.rate": 0.1})
    first.commit(at(7), num_kept=1)
    opened(tmp_path, **{"params.rate": 0.2})
    out = capsys.readouterr().out
    assert "params.rate: 0.1 -> 0.2" in out
    assert f"to go on from its step-000000007 all the same, stop this, `ldm resume train/{first.directory.name}`" in out


@pytest.mark.parametrize("damage", ["", "[]", '{"params.rate"', "\0\0"])
def test_a_damaged_fingerprint_of_another_run_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
):
    for rate in (0.1, 0.2):
        opened(tmp_path, **{"params.rate": rate}).close()
    torn = opened(tmp_path, **{"params.rate": 0.3}).directory / state.FINGERPRINT
    torn.write_text(damage)
    opened(tmp_path, **{"params.rate": 0.4})
    assert "params.rate: 0.2 -> 0.4" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(IntegrityError, match=f"rm -r {torn.parent}"):
        state.fingerprint_of(torn.parent)


def test_what_a_user_copied_beside_the_states_is_none_and_stays(tmp_path: Path):
    run = opened(tmp_path)
    run.commit(at(40), num_kept=1)
    copies = [run.directory / f"step-{name}" for name in ("000000040.bak", "mine")]
    for copy in copies:
        shutil.copytree(run.directory / "step-000000040", copy)
    assert [path.name for path in state.states_of(run.directory)] == ["step-000000040"]
    run.commit(at(50), num_kept=1)
    assert same(newest(run), at(50)) and all(copy.exists() for copy in copies)
    shutil.rmtree(run.directory / "step-000000050")
    run.close()
    assert state.prune(tmp_path / "train", machine()) == [] and copies[0].exists()


@pytest.mark.parametrize(
    ("text", "found"), [("", "no JSON"), ('{"state": 5, "manifest_sha256": "x"}', "JSON that is something else")]
)
def test_nothing_is_pruned_while_nobody_knows_what_was_asked_for(tmp_path: Path, text: str, found: str):
    old = aged(tmp_path, 1, 40)
    request = tmp_path / "train/resume.json"
    request.write_text(text)
    run = Run(tmp_path, "train", {"params.seed": 99})
    for use in (lambda: state.prune(tmp_path / "train", machine(num_kept_runs=0)), lambda: run.adopt(taken)):
        with pytest.raises(IntegrityError, match=rf"(?s)resume\.json: {found}.*fix: rm {request}"):
            use()
    assert old.directory.exists()


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_last_state_of_a_finished_run_stays_if_asked_for(tmp_path: Path, is_kept: bool):
    run = Run(tmp_path, "train", {}, machine(keep_finished_states=is_kept))
    run.open()
    for step in (1, 2):
        run.commit(at(step), num_kept=5)
    run.remove()
    assert [path.name for path in tmp_path.rglob("step-*")] == (["step-000000002"] if is_kept else [])
    units = Run(tmp_path, "train", {"params.a": 1}, machine(keep_finished_states=is_kept))
    units.open()
    units.keep("a", {"w": torch.ones(2)})
    units.remove()
    assert not units.directory.exists(), "units are of no use once their result is written"


def aged(tmp_path: Path, seed: int, days: float, step: int | None = 1) -> Run:
    run = opened(tmp_path, **{"params.seed": seed})
    if step is not None:
        run.commit(at(step), num_kept=1)
    run.close()
    then = time.time() - days * 86400
    for path in [*run.directory.rglob("*"), run.directory]:
        os.utime(path, (then, then))
    return run


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({}, {1, 2, 3, 40}),
        ({"num_kept_runs": 3}, {1, 2}),  # and the one in use
        ({"num_kept_runs": 0}, set()),
        ({"max_run_age_days": 30}, {1, 2, 3}),
        ({"num_kept_runs": 4, "max_run_age_days": 1.5}, {1}),
    ],
)
def test_old_runs_go_by_number_and_age(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limits: dict[str, Any], left: set[int]
):
    old = {days: aged(tmp_path, days, days) for days in (40, 1, 3, 2)}
    empty = aged(tmp_path, 5, 0, step=None)
    held, asked = aged(tmp_path, 50, 50), aged(tmp_path, 60, 60)
    request = {"state": f"{asked.directory.name}/step-000000001", "manifest_sha256": "0" * 64}
    (tmp_path / "train/resume.json").write_text(json.dumps(request))
    held.open()
    capsys.readouterr()
    run = Run(tmp_path, "train", {"params.seed": 99}, machine(**limits))
    run.open()
    assert {days for days, each in old.items() if each.directory.exists()} == left
    assert run.directory.exists() and held.directory.exists() and asked.directory.exists()
    assert not empty.directory.exists(), "a run without a state is of no use, and takes no place of another"
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("old runs removed")]
    assert len(told) == (len(left) < 4)
    assert all(old[days].directory.name in told[0] for days in set(old) - left)


@pytest.mark.parametrize("pattern", ["[!.]*/fingerprint.json", "fingerprint.json"])
def test_runs_that_end_while_another_starts_do_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
):
    """Their folders are listed, and then gone."""
    old = [aged(tmp_path, seed, seed) for seed in (1, 2)]
    real = Path.glob

    def glob(folder: Path, asked: str):
        found = list(real(folder, asked))
        for each in old if asked == pattern and found else []:
            shutil.rmtree(each.directory, ignore_errors=True)
        return iter(found)

    monkeypatch.setattr(Path, "glob", glob)
    run = Run(tmp_path, "train", {"params.seed": 99}, machine(num_kept_runs=1))
    run.open()
    run.commit(at(1), num_kept=1)
    assert same(newest(run), at(1)) and not old[0].directory.exists()


def taken(found: State, told: dict[str, Any]) -> State:
    return State(found.step, found.tensors, {**found.values, "told": told})


def ask(run: Run, step: int) -> None:
    directory = run.directory / f"step-{step:09d}"
    asked = {
        "state": f"{run.directory.name}/{directory.name}",
        "manifest_sha256": check(directory).manifest_sha256,
    }
    (run.directory.parent / "resume.json").write_text(json.dumps(asked))


def test_a_state_that_was_asked_for_becomes_the_newest_of_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = opened(tmp_path, **{"params.rate": 0.1})
    for step in (1, 2):
        source.commit(at(step), num_kept=5)
    source.close()
    ask(source, 1)
    run = opened(tmp_path, **{"params.rate": 0.2})
    for step in (1, 5):
        run.commit(State(step, {"w": torch.zeros(1)}, {}), num_kept=5)
    run.adopt(taken)
    found = newest(run)
    assert found is not None and (found.step, found.tensors["w"].tolist()) == (1, [[1.0] * 2] * 3)
    assert found.values["told"]["differs"] == {"params.rate": [0.1, 0.2]} and found.values["told"]["step"] == 1
    assert "params.rate: 0.1 -> 0.2" in capsys.readouterr().out
    run.commit(at(2), num_kept=5)
    run.adopt(taken)
    assert same(newest(run), at(2)), "it was asked for once"
    assert len(state.states_of(source.directory)) == 2, "where it came from is left alone"


def test_an_earlier_state_of_the_same_run_is_never_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = opened(tmp_path)
    for step in (1, 2):
        run.commit(at(step), num_kept=5)
    ask(run, 1)
    monkeypatch.setattr(Run, "_publish", lambda *_: 1 / 0)
    run.adopt(taken)
    assert same(newest(run), at(1)) and len(state.states_of(run.directory)) == 1


def remove(source: Run) -> None:
    shutil.rmtree(source.directory / "step-000000001")


def write_again(source: Run) -> None:
    source.open()
    source.commit(State(1, {"w": torch.ones(1)}, {}), num_kept=1)
    source.close()


@pytest.mark.parametrize(
    ("change", "error"), [(remove, IntegrityError), (write_again, IntegrityError), (Run.open, MachineError)]
)
def test_a_state_that_is_gone_other_or_in_use_is_refused_and_still_asked_for(
    tmp_path: Path, change: Callable[[Run], None], error: type[Exception]
):
    source = opened(tmp_path, **{"params.rate": 0.1})
    source.commit(at(1), num_kept=1)
    source.close()
    ask(source, 1)
    change(source)
    run = opened(tmp_path, **{"params.rate": 0.2})
    with pytest.raises(error) as caught:
        run.adopt(taken)
    assert newest(run) is None and (tmp_path / "train/resume.json").exists()
    assert change != remove or f"rm {tmp_path / 'train/resume.json'}" in str(caught.value)


def test_what_a_kill_left_of_a_removed_run_is_no_run_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for seed in (1, 2):
        run = Run(tmp_path, "train_unet", {"params.seed": seed})
        run.open()
        run.commit(at(1), num_kept=1)
        run.close()
    left = run.directory.rename(run.directory.with_name(f"{locks.GONE}{run.directory.name}.1"))
    (whole,) = (path for path in (tmp_path / "train_unet").iterdir() if path != left)
    monkeypatch.chdir(ROOT)
    assert [kept.directory for kept in runs.kept(tmp_path)] == [whole]
    assert [training.directory for training in watch.trainings(tmp_path, ["train_unet"])[0]] == [whole]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if something in it were open on NFS
        assert state.prune(tmp_path / "train_unet", machine()) == [] and left.exists(), "under the same name"
    run = Run(tmp_path, "train_unet", {"params.seed": 3})
    run.open()
    assert "params.seed: 1 -> 3" in capsys.readouterr().out, "compared with the whole one"
    assert state.prune(tmp_path / "train_unet", machine(), run.directory) == [] and not left.exists()
    left.mkdir()
    (left / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", full)
        run.remove()
    assert run.directory.exists(), "which harms no result"
    run.close()  # what is closed already is not closed again


@pytest.mark.parametrize("point", range(1, NUM_POINTS + 2))
def test_a_kill_while_a_state_is_taken_over_loses_neither(tmp_path: Path, point: int):
    source = opened(tmp_path, **{"params.rate": 0.1})
    source.commit(at(1), num_kept=1)
    source.close()
    ask(source, 1)
    run = opened(tmp_path, **{"params.rate": 0.2})
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, point, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run.adopt(taken)
    run.close()
    again = opened(tmp_path, **{"params.rate": 0.2})
    again.adopt(taken)
    found = newest(again)
    assert found is not None and found.step == 1 and found.values["told"]["differs"]
    assert not (tmp_path / "train/resume.json").exists()
