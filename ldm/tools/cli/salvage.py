"""`ldm salvage`: what users bring to train on."""

import argparse

from ldm.tools.cli.options import Commands, examples


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = (
        "List what can be read of a tar, plain or packed by gzip: first byte, size and name of every member, and every \
damaged place. Nothing is extracted. With prepare.corpus.damaged_tars: salvage, `prepare` takes what is whole."
    )
    epilog = examples("ldm salvage data/source/photographs.tar")
    summary = "List what can be read of a damaged tar"
    salvage = commands.add_parser("salvage", help=summary, description=about, epilog=epilog)
    salvage.add_argument("tar", metavar="TAR", help="a .tar, .tar.gz or .tgz")
    salvage.set_defaults(command=_salvage)


def _salvage(options: argparse.Namespace) -> None:
    from ldm.tools import salvage

    for line in salvage.lines(options.tar):
        print(line)
