"""What a check is, what came of it, and the page about all of them."""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.import_closure import ROOT

COUNTS = ROOT / "docs/reliability.json"
PAGE = ROOT / "docs/reliability.md"


@dataclass(frozen=True)
class Result:
    """Trials done and passed, with further counts; `failures` tell of those that did not pass."""

    trials: int
    passed: int
    counts: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """One promise: how it is tried, how often in `make test` and how often in full."""

    promise: str
    run: Callable[[Path, int, int], Result]
    """(empty folder, number of trials, seed) -> result."""
    short: int
    full: int


def commit() -> str:
    """The commit that is checked out; "+" says that files differ from it."""
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    name = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ignored = [f":!{path.relative_to(ROOT)}" for path in (COUNTS, PAGE)]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *ignored], cwd=ROOT, check=False).returncode
    return name.stdout.strip() + ("+" if changed else "")


def record(name: str, result: Result) -> None:
    """Write the counts of one check into docs/reliability.json."""
    known = json.loads(COUNTS.read_text()) if COUNTS.is_file() else {}
    told = {key: value for key, value in asdict(result).items() if value or key == "passed"}
    known[name] = told | {"commit": commit()}
    COUNTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def draw(checks: Mapping[str, Check]) -> str:
    """The page docs/reliability.md, from docs/reliability.json."""
    known = json.loads(COUNTS.read_text())
    lines = [
        "# What was tried, how often, and what held",
        "",
        "Written by `make reliability` from `docs/reliability.json`; `make test` tries each a few times.",
        "",
        "| check | promise | trials | passed | counted on the way | commit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, check in checks.items():
        if name not in known:
            lines.append(f"| `{name}` | {check.promise} | not yet run in full | | | |")
            continue
        found = known[name]
        counts = ", ".join(f"{count:,} {what}" for what, count in found.get("counts", {}).items())
        cells = [f"`{name}`", check.promise, f"{found['trials']:,}", f"{found['passed']:,}", counts, found["commit"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
