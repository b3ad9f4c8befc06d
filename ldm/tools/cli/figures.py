"""`ldm figures`."""

import argparse
from pathlib import Path

from ldm.tools.cli import drawing, output
from ldm.tools.cli.options import Commands, examples
from ldm.tools.model.parts import Parts


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = "Draw the figures of docs/diffusion.md: toys whose answer is exact, and figures of the trained artefacts."
    epilog = examples("ldm figures figures --toys", "ldm figures figures --only schedules spacings --overwrite")
    parser = commands.add_parser("figures", help="Draw pictures that explain", description=about, epilog=epilog)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of the figures, made if it is not there")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these figures; all by default")
    parser.add_argument("--toys", action="store_true", help="only those that need no trained artefact")
    parser.add_argument("--overwrite", action="store_true", help="replace what has the name of a figure")
    drawing.add_device(parser)
    parser.set_defaults(command=_figures, adapters=[])
    parser.more = _names


def _names() -> str:
    from ldm.tools.figures import book

    return f"\ntoys: {', '.join(book.TOYS)}\nfigures of the trained artefacts: {', '.join(book.TRAINED)}\n"


def _figures(options: argparse.Namespace) -> None:
    from ldm.tools.figures import book
    from ldm.tools.figures.models import Trained

    def load() -> Trained:
        return Trained.of(drawing.load(options, Parts.of(Path())), Path())

    names = book.selected(options.only, options.toys)
    with output.plain_warnings():
        for path in book.write(options.directory, names, options.overwrite, load):
            print(path, flush=True)
