"""`ldm report`."""

import argparse
from pathlib import Path

from ldm.tools.cli.options import Commands, examples


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = """Write all that is known of the run in this repository as one HTML page: what was trained on what, scores
with intervals and controls, samples, failures, curves, and what everything was made from. The page needs no other file
and no network; it may be mailed, and reads well on a phone."""
    epilog = examples("ldm report", "ldm report run7.html", "ldm report --times times.txt --overwrite")
    summary = "Write the run as one HTML page"
    parser = commands.add_parser("report", help=summary, description=about, epilog=epilog)
    parser.add_argument("file", type=Path, nargs="?", default=Path("report.html"), metavar="FILE", help="(report.html)")
    parser.add_argument("--times", type=Path, metavar="FILE", help="what LDM_TIMES named; by default that of make demo")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> None:
    from ldm.tools import png_folder
    from ldm.tools.report import facts, page

    path: Path = options.file
    png_folder.check_new(path, options.overwrite)
    text = page.write(facts.read(Path(), options.times)).encode()
    png_folder.save(path, text, options.overwrite)
    print(f"{path} ({len(text) / 1e6:.1f} MB)")
