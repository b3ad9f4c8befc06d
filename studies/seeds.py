"""How much a result depends on the seeds of its trainings: `python -m studies.seeds` (or `make seeds`).

Each run is a clone of the commit in `runs/studies/`, with other seeds in its params.yaml, `dvc repro`, and its metrics
as a row of `docs/seeds.json`. Clones share this repository's DVC cache, so that a stage which the seeds leave alone is
not computed again. A run that has a row, or was stopped, is not repeated: call it again and it goes on. Several runs at
once (`--at-once 2`) get cores of their own, and as many threads: more of them in the same time, with other last bits.

Five runs change every seed at once: their mean and spread are the score of the default. Others change the seed of one
stage only, beside the first run: their spreads say what a score varies with most.
"""

import argparse
import json
import os
import queue
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.utils.serialize import modify_yaml

from ldm.core import artifact, config
from ldm.core.params import PathsParams
from studies.devices import processor

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/seeds.json"
PAGE = ROOT / "docs/results.md"
CLONES = ROOT / "runs/studies"
SEEDS = {
    "autoencoder": "train_autoencoder.source.training.seed",
    "clip": "train_clip.source.training.seed",
    "unet": "train_unet.training.seed",
    "sampling": "sample.drawing.seed",
}
"""What may vary: a name and the key of its seed in params.yaml."""
NUM_RUNS, NUM_SINGLE = 5, 3
"""Runs with every seed changed; values of a seed that is changed alone."""
SCORES = {
    "scene_accuracy_held_out": "held out",
    "scene_strict_accuracy_held_out": "held out, strict",
    "scene_accuracy_unseen": "unseen",
    "scene_accuracy_reworded": "reworded",
    "scene_accuracy_seen": "seen",
}
"""Metrics of the table, in percent, with their headings."""
_MARKS = ("<!-- seeds -->\n", "<!-- /seeds -->")


@dataclass(frozen=True)
class Run:
    """One run of the pipeline: the seed of every part, and its CPU threads, if they are other ones than usual."""

    seeds: dict[str, int]
    threads: int | None = None

    @property
    def name(self) -> str:
        """Its seeds in the order of `SEEDS`, such as 0-0-1-0."""
        seeds = "-".join(str(self.seeds[part]) for part in SEEDS)
        return seeds if self.threads is None else f"{seeds}-threads-{self.threads}"


def plan() -> list[Run]:
    """All runs, without repetition; the first has seed 0 everywhere. Another with these seeds has one thread, which
    changes nothing but the rounding."""
    together = [Run(dict.fromkeys(SEEDS, seed)) for seed in range(NUM_RUNS)]
    rounding = Run(dict.fromkeys(SEEDS, 0), threads=1)
    single = [Run({**dict.fromkeys(SEEDS, 0), part: seed}) for seed in range(1, NUM_SINGLE) for part in reversed(SEEDS)]
    return [*together, rounding, *single]


def do(run: Run, share: Sequence[int] | None = None) -> dict[str, Any]:
    """The row of a run: seeds, commit, processor, threads if it had a share of the cores, every metric of evaluation.

    share: the cores that it keeps to while other runs have the rest; what it prints goes to a file then.
    """
    clone = CLONES / run.name
    if not clone.exists():
        _call(ROOT, "git", "clone", "--quiet", str(ROOT), str(clone))
        _call(clone, "dvc", "cache", "dir", "--local", str(ROOT / ".dvc/cache"))
        if run.threads is not None:
            # No stage depends on the threads: DVC would take the results of another run, by this file or its run cache.
            (clone / "dvc.lock").unlink()
    with modify_yaml(str(clone / config.PARAMS)) as params:
        for part, key in SEEDS.items():
            section, *inner, last = key.split(".")
            owner: Any = params[section]
            for name in inner:
                owner = owner[name]
            owner[last] = run.seeds[part]
        params["machine"]["threads"] = run.threads or (None if share is None else len(share))
    _repro(clone, share, uses_run_cache=run.threads is None)
    paths = config.read(PathsParams, "paths", clone / config.PATHS)
    metrics = json.loads((clone / paths.evaluation / "metrics.json").read_text(encoding="utf-8"))
    commit = _call(clone, "git", "rev-parse", "--short", "HEAD", capture=True).strip()
    shutil.rmtree(clone)
    row = {"seeds": run.seeds, "commit": commit, "processor": processor(), "metrics": metrics}
    return row | ({"threads": run.threads} if run.threads else {} if share is None else {"threads": len(share)})


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Both tables as Markdown, from the rows that are there."""
    runs = {run.name: run for run in plan() if run.name in rows}
    together = [name for name, run in runs.items() if len(set(run.seeds.values())) == 1 and run.threads is None]
    shown = {key: label for key, label in SCORES.items() if all(key in rows[name]["metrics"] for name in runs)}
    lines = [_row("seeds", shown.values()), _row("---", ["---"] * len(shown))]
    for name in together:
        lines.append(_row(f"all {runs[name].seeds['unet']}", [f"{_percent(rows[name], key):.1f}" for key in shown]))
    if len(together) > 1:
        lines += _summary(rows, together, shown)
    spread_lines: list[str] = []
    for part, alone in (_rounding(rows) | _alone(runs)).items():
        if len(alone) > 1:
            values = [[_percent(rows[name], key) for name in alone] for key in shown]
            cells = [f"{', '.join(f'{value:.1f}' for value in v)} (± {statistics.stdev(v):.1f})" for v in values]
            spread_lines.append(_row(part, cells))
    if spread_lines:
        lines += ["", _row("changed alone", shown.values()), _row("---", ["---"] * len(shown)), *spread_lines]
    origins = sorted({f"{rows[name]['commit']} on {rows[name]['processor']}" for name in runs})
    return "\n".join([*lines, "", f"Percent of whole scenes; commits {', '.join(origins)}; `make seeds`.", ""])


def _alone(runs: Mapping[str, Run]) -> dict[str, list[str]]:
    """What alone differs -> names of the runs that differ in nothing else, that of the default first."""
    found: dict[str, list[str]] = {}
    for part in SEEDS:
        others = [other for other in SEEDS if other != part]
        same = [n for n, run in runs.items() if run.threads is None and not any(run.seeds[o] for o in others)]
        found[f"seed of {part}: {', '.join(str(runs[n].seeds[part]) for n in same)}"] = same
    return found


def _rounding(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The same of two runs of equal seeds, if they had other threads."""
    names = [Run(dict.fromkeys(SEEDS, 0), threads).name for threads in (None, 1)]
    if not all(name in rows for name in names):
        return {}
    first, second = (rows[name].get("threads", "all") for name in names)
    return {} if first == second else {f"rounding: {first} threads, {second} thread": names}


def _summary(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], keys: Iterable[str]) -> list[str]:
    values = [[_percent(rows[name], key) for name in names] for key in keys]
    spreads = [f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for v in values]
    return [_row("mean ± standard deviation", spreads), _row("worst", [f"{min(v):.1f}" for v in values])]


def _percent(row: Mapping[str, Any], key: str) -> float:
    return 100 * float(row["metrics"][key])


def _row(label: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([label, *cells])} |"


def _call(folder: Path, *command: str, capture: bool = False) -> str:
    program = Path(sys.executable).parent / command[0]
    found = [str(program if program.is_file() else command[0]), *command[1:]]
    done = subprocess.run(found, cwd=folder, check=True, text=True, stdout=subprocess.PIPE if capture else None)
    return done.stdout if capture else ""


def _repro(clone: Path, share: Sequence[int] | None, *, uses_run_cache: bool = True) -> None:
    command = [sys.executable, "-m", "dvc", "repro", *([] if uses_run_cache else ["--no-run-cache"])]
    # Stages start as `python`: that of this environment, whether or not it is active.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if share is None:
        subprocess.run(command, cwd=clone, env=environment, check=True)
        return
    with clone.with_suffix(".log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=clone, env=environment, stdout=log, stderr=log)
        os.sched_setaffinity(process.pid, share)
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)


def read_rows(path: Path = RESULTS) -> dict[str, Any]:
    """Rows of former calls by name of the run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_page(rows: Mapping[str, Mapping[str, Any]], page: Path) -> None:
    """Put the tables between their marks in docs/results.md."""
    before, opening, rest = page.read_text(encoding="utf-8").partition(_MARKS[0])
    _, closing, after = rest.partition(_MARKS[1])
    assert opening and closing, "docs/results.md has no marks for the table of seeds"
    page.write_text(f"{before}{opening}{table(rows)}{closing}{after}", encoding="utf-8")


def do_all(runs: Sequence[Run], rows: dict[str, Any], num_at_once: int) -> None:
    """Do the runs that have no row yet, in their order; after each, write rows and tables. After an error or Ctrl-C no
    other begins."""
    all_cores = sorted(os.sched_getaffinity(0))
    shares: queue.Queue[Sequence[int] | None] = queue.Queue()
    for i in range(num_at_once):
        shares.put(all_cores[i::num_at_once] if num_at_once > 1 else None)
    lock, is_over = threading.Lock(), threading.Event()

    def work(run: Run) -> None:
        if is_over.is_set():
            return
        share = shares.get()
        where = "" if share is None else f" on cores {share}, see {CLONES / run.name}.log"
        print(f"run {run.name}: {run.seeds}{where}", flush=True)
        try:
            row = do(run, share)
        except BaseException:
            is_over.set()
            raise
        finally:
            shares.put(share)
        with lock:
            rows[run.name] = row
            artifact.write_json(RESULTS, rows)
            write_page(rows, PAGE)

    with ThreadPoolExecutor(num_at_once) as pool:
        try:
            for done in as_completed([pool.submit(work, run) for run in runs if run.name not in rows]):
                done.result()
        except BaseException:
            is_over.set()
            raise


def main() -> None:
    """Do what of the plan has no row yet, and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.seeds", description="Train the default with several seeds."
    )
    num_cores = len(os.sched_getaffinity(0))
    parser.add_argument("--num-runs", type=int, default=len(plan()), help="how many of the plan's first runs (all)")
    parser.add_argument("--at-once", type=int, default=1, choices=range(1, num_cores + 1), help="runs at a time (1)")
    parser.add_argument("--again", action="store_true", help="forget the rows of former calls")
    options = parser.parse_args()
    rows = {} if options.again else read_rows()
    CLONES.mkdir(parents=True, exist_ok=True)
    try:
        do_all(plan()[: options.num_runs], rows, options.at_once)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\nfix: see what it says above or in {CLONES}, then run this again: it goes on from there")
    print(table(rows))


if __name__ == "__main__":
    main()
