"""Units of work of `prepare`: made once, whoever is killed or asked to stop, however many processes share them."""

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from ldm.core.errors import RejectedError
from ldm.core.shards import Shards
from ldm.corpora import made, units
from ldm.corpora.made import Made, Sample
from ldm.corpora.pairs import Rejection
from ldm.corpora.params import PrepareParams
from tests import stage_scripts
from tests.forked import run_two
from tests.prepare_data import WEBDATASET, kept, outputs, write_params, write_tar
from tests.reliability import workspace

_NUM_TARS, _PER_TAR = 5, 23


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five tars, whose parts hold ten samples at most."""
    for number in range(_NUM_TARS):
        write_tar(tmp_path / f"data/source/{number:05d}.tar", range(100 * number, 100 * number + _PER_TAR))
    write_params(tmp_path, WEBDATASET)
    monkeypatch.setattr(units, "_MOST_ITEMS", 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _forget(root: Path) -> None:
    for name in ("data/images", "data/captions", "data/prepare_results", "runs"):
        shutil.rmtree(root / name, ignore_errors=True)


def _prepare(root: Path, **changes: Any) -> dict[str, bytes]:
    write_params(root, WEBDATASET, **changes)
    stage_scripts.run("prepare")
    return outputs(root)


def _slow() -> None:
    """In the stage: every sample takes a while."""
    real = units.made.packed

    def packed(items: Any) -> Any:
        time.sleep(0.1)
        return real(items)

    units.made.packed = packed  # type: ignore[assignment]


def _wait_until_kept(root: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(kept(root)) < count:
        assert time.monotonic() < deadline, "nothing was kept for a minute"
        time.sleep(0.005)


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(root: Path) -> None:
    whole = _prepare(root)
    assert len(kept(root)) == _NUM_TARS * 3, "23 samples are kept in three parts"
    _forget(root)
    for count in (1, 5, 9):
        before = kept(root)
        child = workspace.fork(root, "prepare", _slow)
        _wait_until_kept(root, count)
        workspace.kill(child)
        assert workspace.wait(child) == -signal.SIGKILL
        assert before.items() <= kept(root).items(), "what was kept is not made again"
    before = kept(root)
    assert _prepare(root) == whole
    assert before.items() <= kept(root).items() and len(kept(root)) == _NUM_TARS * 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stopped_run_says_so_leaves_no_process_and_loses_nothing(root: Path, num_workers: int) -> None:
    whole = _prepare(root)
    _forget(root)
    write_params(root, WEBDATASET, num_workers)
    child = workspace.fork(root, "prepare", _slow)
    _wait_until_kept(root, 2)
    family = psutil.Process(child).children(recursive=True)
    os.kill(child, signal.SIGTERM)
    assert workspace.wait(child) == 75
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert "SIGTERM received" in (root / "said.txt").read_text()
    before = kept(root)
    assert 2 <= len(before) < _NUM_TARS * 3 and not outputs(root)
    assert _prepare(root) == whole
    assert before.items() <= kept(root).items()


def test_two_processes_make_the_same_bytes_as_one(root: Path) -> None:
    whole = _prepare(root)
    before = kept(root).keys()
    _forget(root)
    ended = run_two(root / "said", lambda _: _main())
    assert [each.code for each in ended] == [0, 0], ended[0].said
    assert outputs(root) == whole and kept(root).keys() == before


def _main() -> None:
    stage_scripts.run("prepare")


def test_an_added_tar_costs_its_own_work_and_moves_nothing(root: Path) -> None:
    _prepare(root)
    before, splits = kept(root), _splits(root)
    write_tar(root / "data/source/00002b.tar", range(900, 923))
    _prepare(root)
    after = kept(root)
    assert before.items() <= after.items() and len(after.keys() - before.keys()) == 3
    assert splits.items() <= _splits(root).items() and len(_splits(root)) == len(splits) + 23
    (root / "data/source/00001.tar").unlink()
    _prepare(root)
    assert len(kept(root)) == _NUM_TARS * 3, "what was made of a tar that is gone is dropped"


def _splits(root: Path) -> dict[str, str]:
    return {key: split for split in ("train", "val") for key in Shards(root / "data/images" / split).keys}


def test_params_that_only_arrange_samples_make_none_again(root: Path) -> None:
    _prepare(root)
    before = kept(root)
    for changes in ({"num_samples_per_shard": 7}, {"num_examples": 1}, {"max_reject_fraction": 0.5}):
        _prepare(root, **changes)
        assert kept(root) == before
    _prepare(root, image_size_px=8)
    assert not before.items() & kept(root).items()


def test_a_unit_is_made_again_from_a_damaged_part_on(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = _prepare(root)
    before = kept(root)
    chosen, following = sorted(before)[4:6]
    (tensors,) = root.glob(f"runs/prepare/*/unit-*{chosen.removeprefix('unit-')}/tensors.safetensors")
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    assert _prepare(root) == whole
    assert {name for name in before if kept(root)[name] != before[name]} == {chosen, following}
    assert "it is computed again" in capsys.readouterr().err


def test_a_small_tar_with_some_rejects_does_not_decide_about_those_that_follow(root: Path) -> None:
    write_tar(root / "data/source/00000.tar", range(3), num_bad=1)
    _prepare(root, max_reject_fraction=0.05)
    assert len(kept(root)) == 1 + (_NUM_TARS - 1) * 3


@pytest.mark.parametrize("reason", ["TOO_SLOW", "CRASHED", "UNREADABLE"])
def test_a_sample_that_was_lost_to_what_passes_is_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    whole, real = _prepare(root), made.packed
    for folder in (root / "runs/prepare").iterdir():
        shutil.rmtree(folder)

    def packed(items: Sequence[Made]) -> Any:
        lost = [
            Rejection(item.key, reason, "busy", item.source) if isinstance(item, Sample) else item for item in items
        ]
        return real(lost)

    with monkeypatch.context() as patch:
        patch.setattr(made, "packed", packed)
        with pytest.raises(RejectedError, match=f"{reason} "):
            _prepare(root)
    assert _prepare(root) == whole


def test_too_many_rejects_end_early_with_reasons_and_keep_what_was_made(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(_NUM_TARS):
        write_tar(root / f"data/source/{number:05d}.tar", range(100 * number, 100 * number + _PER_TAR), num_bad=15)
    with monkeypatch.context() as patch, pytest.raises(RejectedError, match=r"30 of 46 samples rejected: NOT_IMAGE 30"):
        patch.setattr(units, "_FEWEST", 20)
        patch.setattr(units, "_FEWEST_UNITS", 2)
        _prepare(root, max_reject_fraction=0.15)
    said = "30 of 46 samples in 2 of 5 units of work are rejected, so no other is made"
    assert said in capsys.readouterr().err and len(kept(root)) == 2 * 3, "two tars of five were enough to know"
    rows = [json.loads(row) for row in (root / "data/prepare_results/rejected.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rows} == {"NOT_IMAGE"} and len(rows) == 30
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows), "in the order of the corpus"
    before = kept(root)
    _prepare(root, max_reject_fraction=0.7)
    assert before.items() <= kept(root).items() and len(kept(root)) == _NUM_TARS * 3
    report = json.loads((root / "data/prepare_results/report.json").read_text())
    assert (report["num_seen"], report["num_rejected"]) == (_NUM_TARS * _PER_TAR, _NUM_TARS * 15)


@pytest.mark.parametrize("bad", ["00000", "99999"])
def test_one_bad_tar_does_not_decide_whatever_it_is_called(
    root: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    write_tar(root / f"data/source/{bad}.tar", range(900, 900 + _PER_TAR), num_bad=_PER_TAR)
    monkeypatch.setattr(units, "_FEWEST", 20)
    _prepare(root, max_reject_fraction=0.4)
    report = json.loads((root / "data/prepare_results/report.json").read_text())
    assert report["num_rejected"] == _PER_TAR


def test_rounds_double() -> None:
    assert list(units._rounds(13, 2)) == [(0, 2), (2, 4), (4, 8), (8, 13)]
    assert list(units._rounds(3, 8)) == [(0, 3)] and list(units._rounds(0, 2)) == []


def test_units_depend_on_what_changes_samples_alone() -> None:
    write = {"num_samples_per_shard": 25, "max_seconds_per_sample": 20, "max_reject_fraction": 0, "num_examples": 4}
    params = PrepareParams.model_validate({"corpus": WEBDATASET, "captions": "corpus", "image_size_px": 16} | write)
    found = units.made_by(str(workspace.ROOT / "stages/prepare.py"), params)
    code = {key for key in found if key.startswith("code.")}
    assert {"code.ldm/corpora/webdataset.py", "code.ldm/core/images.py"} <= code
    assert not {"code.ldm/corpora/units.py", "code.ldm/core/shards.py", "code.ldm/compute/state.py"} & code
    assert "params.image_size_px" in found and "params.num_examples" not in found
    assert {"inputs.pillow", "inputs.imagehash"} <= found.keys()
