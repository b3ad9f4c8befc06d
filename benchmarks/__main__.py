"""All benchmarks of docs/performance.md, one after the other, then the page: `python -m benchmarks`."""

import argparse
import subprocess
import sys

from benchmarks import page
from benchmarks.measuring import ROOT


def main() -> None:
    """Run each in a process of its own; a small run writes nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(page.NAMES)}; default all")
    parser.add_argument("--small", action="store_true", help="least sizes, to see that they run")
    options = parser.parse_args()
    if unknown := set(options.names) - set(page.NAMES):
        parser.error(f"no benchmark of the page: {', '.join(sorted(unknown))}")
    failed: list[str] = []
    for name in options.names or page.NAMES:
        print(f"\n# {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *["--small"] * options.small]
        failed += [name] if subprocess.run(command, cwd=ROOT, check=False).returncode else []
    if not options.small:
        page.main()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the page has the former numbers of these")


if __name__ == "__main__":
    main()
