"""`python -m tests.reliability [CHECK ...]`: every check in full, or those that are named."""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.reliability import report
from tests.reliability.checks import CHECKS


def main(names: list[str]) -> int:
    """Run checks in full and write what came of them; returns the number of those that failed."""
    num_failed = 0
    for name in names or CHECKS:
        check, started = CHECKS[name], time.monotonic()
        print(f"{name}: {check.full} trials ...", flush=True)
        # A stage that a check ran in this process leaves its accumulation there, which the next one must not find.
        os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
        with tempfile.TemporaryDirectory() as folder:
            result = check.run(Path(folder), check.full, 0)
        print(f"{name}: {result.passed} of {result.trials} passed, {time.monotonic() - started:.0f} s", flush=True)
        for failure in result.failures[:5]:
            print(f"  {failure}", flush=True)
        report.record(name, result)
        report.PAGE.write_text(report.draw(CHECKS))
        num_failed += result.passed != result.trials
    return num_failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
