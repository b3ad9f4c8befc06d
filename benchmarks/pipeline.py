"""What DVC and the launches of stages add to the recipe tiny, and how long `dvc repro` takes when all is up to date.

The pipeline runs in a copy of this repository. A stage tells its own time from the start of its process, imports
included (`LDM_TIMES`, as `make demo` does); what is left of the whole is DVC, launchers, `check`, and the exits of
processes. That part is about the same in every recipe, so the default's share of it follows from the times that `make
demo` left, if it ran here and params.yaml is still the default.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import PARAMS, ROOT, Found, Row, Spread
from ldm.core import config
from tests.repository import Repository

TIMES = "runs/stage_times.txt"


def stage_seconds(file: Path) -> dict[str, float]:
    """What stages told of themselves; of one that ran twice, the last time."""
    return {name: float(seconds) for name, seconds in map(str.split, file.read_text().splitlines())}


def default_seconds(root: Path) -> dict[str, float]:
    """What the stages told in the last `make demo` of a repository; nothing if its params are not the default's."""
    params, default = root / config.PARAMS, root / PARAMS.relative_to(ROOT)
    if not (root / TIMES).is_file() or params.read_bytes() != default.read_bytes():
        return {}
    return stage_seconds(root / TIMES)


def measure(options: argparse.Namespace) -> Found:
    """The whole pipeline once, then runs that find nothing to do."""
    with tempfile.TemporaryDirectory() as folder:
        repository, times = Repository(Path(folder, "repository")), Path(folder, "times")
        target = ["prepare"] if options.small else []
        command = ["env", f"LDM_TIMES={times}", "dvc", "repro", *target]
        whole = _seconds(repository, *command)
        stages = stage_seconds(times)
        idle = [_seconds(repository, "dvc", "repro", *target) for _ in range(options.rounds)]
    rest = whole - sum(stages.values())
    rows: list[Row] = [
        {"part": name, "s": seconds, "share, %": 100 * seconds / whole} for name, seconds in stages.items()
    ]
    rows.append({"part": "DVC, launches, `check`", "s": rest, "share, %": 100 * rest / whole})
    ratios: dict[str, Spread | float] = {
        "pipeline_overhead_tiny": rest / whole,
        "noop_repro_seconds": measuring.spread(idle),
    }
    if len(of_default := default_seconds(ROOT)) >= len(stages):
        ratios["pipeline_overhead_default"] = rest / (rest + sum(of_default.values()))
    return Found({"`dvc repro` of recipes/tiny.yaml": rows}, ratios)


def _seconds(repository: Repository, *command: str) -> float:
    begin = time.perf_counter()
    repository.run(*command)
    return time.perf_counter() - begin


if __name__ == "__main__":
    measuring.main("pipeline", __doc__, measure, rounds=(3, 1))
