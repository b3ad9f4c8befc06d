"""The study over training seeds: which runs it does, what it changes in each, and what its tables say."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from studies import seeds
from tests.import_closure import ROOT


def row(run: seeds.Run, score: float) -> dict[str, Any]:
    metrics = {key: score for key in seeds.SCORES}
    return {"seeds": run.seeds, "commit": "abc", "processor": "a CPU", "metrics": metrics}


def test_five_runs_change_every_seed_and_others_one_seed_alone() -> None:
    plan = seeds.plan()
    rounding = [run for run in plan if run.threads is not None]
    assert [(run.name, run.threads) for run in rounding] == [("0-0-0-0-threads-1", 1)]
    plan = [run for run in plan if run not in rounding]
    together = [run for run in plan if len(set(run.seeds.values())) == 1]
    assert len(together) >= 5 and plan[0].seeds == dict.fromkeys(seeds.SEEDS, 0)
    assert len({run.name for run in plan}) == len(plan)
    for run in plan[len(together) :]:
        assert len([seed for seed in run.seeds.values() if seed]) == 1
    changed = {part for run in plan[len(together) :] for part, seed in run.seeds.items() if seed}
    assert changed == set(seeds.SEEDS)


def test_the_tables_hold_mean_spread_and_worst_of_the_rows_that_are_there() -> None:
    scores = {run.name: 0.9 + i / 100 for i, run in enumerate(seeds.plan())}
    rows = {run.name: row(run, scores[run.name]) for run in seeds.plan()}
    assert "rounding" not in seeds.table(rows), "nothing says that their threads differ"
    rows["0-0-0-0-threads-1"]["threads"] = 1
    text = seeds.table(rows)
    together = [100 * scores["-".join([str(i)] * len(seeds.SEEDS))] for i in range(seeds.NUM_RUNS)]
    expected = f"{statistics.mean(together):.1f} ± {statistics.stdev(together):.1f}"
    assert f"| mean ± standard deviation | {expected} |" in text
    assert f"| worst | {min(together):.1f} |" in text
    for label, names in {
        "seed of clip: 0, 1, 2": ("0-0-0-0", "0-1-0-0", "0-2-0-0"),
        "rounding: all threads, 1 thread": ("0-0-0-0", "0-0-0-0-threads-1"),
    }.items():
        values = [100 * scores[name] for name in names]
        shown = ", ".join(f"{value:.1f}" for value in values)
        assert f"| {label} | {shown} (± {statistics.stdev(values):.1f}) |" in text
    assert "abc on a CPU" in text
    partial = seeds.table({name: rows[name] for name in ("0-0-0-0", "1-1-1-1")})
    assert "seed of clip" not in partial and "| all 1 |" in partial
    assert "mean" not in seeds.table({"0-0-0-0": rows["0-0-0-0"]})


def test_a_run_is_a_clone_with_other_seeds_and_leaves_only_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds, "CLONES", tmp_path)
    changed: dict[str, Any] = {}

    def call(folder: Path, *command: str, capture: bool = False) -> str:
        if command[:2] == ("git", "clone"):
            Path(command[-1]).mkdir()
            for name in ("params.yaml", "paths.yaml", "dvc.lock"):
                (Path(command[-1]) / name).write_text((ROOT / name).read_text())
        return "abc\n" if capture else ""

    def repro(clone: Path, share: Any, uses_run_cache: bool) -> None:
        assert (clone / "dvc.lock").exists() == uses_run_cache
        changed["is_trained"] = not uses_run_cache
        text = (clone / "params.yaml").read_text()
        pairs = zip((ROOT / "params.yaml").read_text().splitlines(), text.splitlines(), strict=True)
        changed.update(YAML(typ="safe").load(text), num_lines=sum(a != b for a, b in pairs))
        (clone / "data/evaluation").mkdir(parents=True)
        (clone / "data/evaluation/metrics.json").write_text(json.dumps({"scene_accuracy_unseen": 0.5}))

    monkeypatch.setattr(seeds, "_call", call)
    monkeypatch.setattr(seeds, "_repro", repro)
    run = seeds.Run({"autoencoder": 4, "clip": 3, "unet": 2, "sampling": 1})
    found = seeds.do(run)
    assert (found["commit"], found["metrics"]) == ("abc", {"scene_accuracy_unseen": 0.5})
    owners = changed["train_autoencoder"]["source"], changed["train_clip"]["source"], changed["train_unet"]
    assert [owner["training"]["seed"] for owner in owners] == [4, 3, 2]
    assert changed["sample"]["drawing"]["seed"] == 1 and changed["num_lines"] == 4
    assert changed["machine"]["threads"] is None and "threads" not in found
    assert not list(tmp_path.iterdir())
    found = seeds.do(run, share=[1])
    assert changed["machine"]["threads"] == 1 == found["threads"] and changed["num_lines"] == 5
    assert not changed["is_trained"], "equal stages of other runs will do"
    for share in (None, [0, 1]):
        found = seeds.do(seeds.Run(run.seeds, threads=3), share)
        assert changed["machine"]["threads"] == 3 == found["threads"] and changed["is_trained"]


def test_runs_at_once_have_cores_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print(os.sched_getaffinity(0))"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nsleep 1; {sys.executable} -c '{code}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    clone = tmp_path / "clone"
    clone.mkdir()
    core = max(os.sched_getaffinity(0))
    seeds._repro(clone, [core])
    assert clone.with_suffix(".log").read_text() == f"{{{core}}}\n"


def test_rows_are_written_as_runs_end_and_those_that_are_there_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, Any]] = []

    def do(run: seeds.Run, share: Any) -> dict[str, Any]:
        done.append((run.name, share))
        return row(run, 0.5)

    monkeypatch.setattr(seeds, "do", do)
    monkeypatch.setattr(seeds, "RESULTS", tmp_path / "seeds.json")
    monkeypatch.setattr(seeds, "write_page", lambda rows, page: None)
    first, *others = seeds.plan()[:3]
    rows = {first.name: row(first, 0.4)}
    seeds.do_all([first, *others], rows, num_at_once=1)
    assert done == [(run.name, None) for run in others]
    assert json.loads((tmp_path / "seeds.json").read_text()) == rows and len(rows) == 3
    done.clear()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    seeds.do_all([first, *others], {}, num_at_once=2)
    assert sorted(name for name, _ in done) == [run.name for run in (first, *others)]
    assert {tuple(share) for _, share in done} <= {(0, 2), (1,)}


def test_after_an_error_no_other_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def do(run: seeds.Run, share: Any) -> dict[str, Any]:
        begun.append(run.name)
        raise subprocess.CalledProcessError(1, "dvc")

    monkeypatch.setattr(seeds, "do", do)
    with pytest.raises(subprocess.CalledProcessError):
        seeds.do_all(seeds.plan()[:4], {}, num_at_once=1)
    assert begun == ["0-0-0-0"]
    monkeypatch.setattr(sys, "argv", ["seeds", "--again", "--num-runs", "2"])
    with pytest.raises(SystemExit, match="run this again: it goes on"):
        seeds.main()


def test_the_page_has_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(seeds.PAGE.read_text())
    rows = {run.name: row(run, 0.5) for run in seeds.plan()[:2]}
    seeds.write_page(rows, page)
    assert seeds.table(rows) in page.read_text()
    seeds.write_page(rows, page)
    assert page.read_text().count("| all 1 |") == 1
