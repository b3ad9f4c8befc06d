import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm import artifact, state
from ldm.errors import MachineError, NumericsError
from ldm.state import Run, State

ROOT = Path(__file__).resolve().parents[1]


def at(step: int) -> State:
    return State(step, {"w": torch.full((3, 2), float(step)), "count": torch.tensor(step)}, {"rows": [step, 0.1]})


def opened(tmp_path: Path, **fingerprint: object) -> Run:
    run = Run(tmp_path, "train", fingerprint)
    run.open()
    return run


def newest(run: Run) -> State | None:
    saved = run.choose()
    return None if saved is None else state.read(saved)


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


def test_nothing_is_dropped_before_the_new_state_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = opened(tmp_path)
    run.commit(at(1), num_kept=1)
    monkeypatch.setattr(state, "check", lambda directory: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.commit(at(2), num_kept=1)
    monkeypatch.undo()
    assert (run.directory / "step-000000001").exists()


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
    code = "import sys, os, signal; from ldm.state import Run; from pathlib import Path\n"
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
    first = opened(tmp_path, seed=0)
    first.keep("old", {"w": torch.ones(2)})
    first.close()
    run = opened(tmp_path, seed=1)
    assert run.kept("a") is None and run.kept_keys() == []
    for key in ("b", "a"):
        run.keep(key, {"w": torch.full((2,), ord(key))}, {"key": key})
    run.keep("b", {"w": torch.zeros(2)}, {"key": "b again"})
    kept = run.kept("b")
    assert kept is not None and kept.values == {"key": "b again"} and kept.tensors["w"].tolist() == [0, 0]
    assert run.kept_keys() == ["a", "b"]
    held = Run(tmp_path, "train", {"seed": 2})
    held.open()
    run.retain(["b"])
    assert run.kept_keys() == ["b"]
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
