"""What all benchmarks share: sides that take turns, quartiles, a table, lines `ratio NAME VALUE`, and a JSON.

A benchmark is a module with a function that measures and returns what it `Found`; `main` does the rest. Its JSON, with
the commit, the kind of CPU, threads and versions, is what `docs/performance.md` is made of (`benchmarks/page.py`).
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/benchmarks"
PARAMS = ROOT / "recipes/default.yaml"
"""What benchmarks call the default, whatever recipe params.yaml holds."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Side = Callable[[], object]
Row = dict[str, str | float]
Spread = tuple[float, float, float]
"""Median, first and third quartile."""

_CODE = ("ldm", "stages", "benchmarks", "recipes", "params.yaml")
"""What decides the numbers."""
_PACKAGES = ("torch", "diffusers", "accelerate", "dvc")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Found:
    """What a benchmark found."""

    tables: dict[str, list[Row]]
    """Title -> rows; the keys of a row are headings."""
    ratios: dict[str, Spread | float] = field(default_factory=dict[str, Spread | float])
    """By name. No unit, but for the few whose names end in one."""


def seconds(side: Side) -> float:
    """Time of one call: CPU time of this thread where it computes alone, which other programs change little; else time
    that passed, on a GPU until it is idle."""
    clock = time.thread_time if DEVICE.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    side()
    synchronise()
    return clock() - begin


def synchronise() -> None:
    """Wait until a GPU is idle."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def turns(sides: Mapping[str, Side], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of every side, one value per round. In a round each has its turn, in one order and then in the other, so
    that a machine that gets slower does so for all of them. The first round is a warm-up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(num_rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            taken = seconds(sides[name])
            if number:
                found[name].append(taken)
    return found


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    first, middle, third = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return middle, first, third


def quotient(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of two sides, paired by rounds."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def fastest(found: Mapping[str, Sequence[float]], start: str) -> str:
    """Of the sides whose names begin so, the one with the least median."""
    return min((name for name in found if name.startswith(start)), key=lambda name: spread(found[name])[0])


def milliseconds(values: Sequence[float]) -> Row:
    """Cells of a row: median and quartiles."""
    middle, first, third = (1000 * value for value in spread(values))
    return {"ms": middle, "quartiles": f"{cell(first)} to {cell(third)}"}


def cell(value: str | float) -> str:
    """A value as tables show it."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def facts() -> dict[str, Any]:
    """The machine and the code. No name of the machine, and no path of it."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", *_CODE], capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit + " with changes" * bool(changed),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "MKL_CBWR": os.environ.get("MKL_CBWR", "unset"),
        "load": round(os.getloadavg()[0], 1),
    }


def _cpu() -> str:
    """Kind of CPU, and what of it decides how fast matrix products are."""
    lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    told = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set(told.get("flags", "").split())
    return " ".join([told.get("model name", platform.machine()), *(flag for flag in _FLAGS if flag in flags)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def main(
    name: str,
    words: str | None,
    measure: Callable[[argparse.Namespace], Found],
    arguments: Sequence[str] | None = None,
    *,
    rounds: tuple[int, int] = (10, 2),
    threads: int = 1,
    add: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """Run a benchmark: its tables, then its ratios, then its JSON.

    rounds: by default, and of a small run. add: adds options of its own.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=words)
    parser.add_argument("--rounds", type=int, help=f"turns of each side (default {rounds[0]})")
    parser.add_argument("--threads", type=int, default=threads, help=f"CPU threads (default {threads})")
    parser.add_argument(
        "--small", action="store_true", help="least sizes, to see that it runs: no number means anything"
    )
    parser.add_argument("--out", type=Path, help="folder of the JSON (default docs/benchmarks, none for a small run)")
    add(parser)
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or rounds[options.small]
    before, machine = torch.get_num_threads(), facts()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    try:
        found = measure(options)
    finally:
        torch.set_num_threads(before)
    out = options.out or (None if options.small else RESULTS)
    if out is not None:
        write(out / DEVICE.type / f"{name}.json", found, {**machine, "threads": options.threads})
    for title, rows in found.tables.items():
        print(f"\n{title}\n{text_table(rows)}")
    print()
    for ratio, value in found.ratios.items():
        print(f"ratio {ratio} {value[0] if isinstance(value, tuple) else value:.3f}")


def write(path: Path, found: Found, machine: Mapping[str, Any]) -> None:
    """What was found and where, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(found.__dict__), parse_float=lambda text: float(f"{float(text):.5g}"))
    path.write_text(json.dumps({"machine": machine, **rounded}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def text_table(rows: Sequence[Row]) -> str:
    """Rows as aligned columns."""
    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
