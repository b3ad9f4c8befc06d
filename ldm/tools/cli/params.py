"""`ldm check` and `ldm recipe`: params files."""

import argparse
from pathlib import Path

from ldm.core import config
from ldm.core.config import PARAMS
from ldm.core.errors import ConfigError
from ldm.tools.cli.options import Commands, examples


def add(commands: Commands) -> None:
    """Add the commands to a parser."""
    about = "Validate a params file, section by section and as a whole; one of recipes/ with the default beneath."
    epilog = examples("ldm check", "ldm check recipes/openmoji.yaml")
    check = commands.add_parser("check", help="Say what is wrong in a params file", description=about, epilog=epilog)
    check.add_argument("path", nargs="?", type=Path, default=PARAMS, metavar="PATH", help="params.yaml by default")
    check.set_defaults(command=_check)
    check.more = _kinds
    about = "Write params.yaml: the default with what a recipe changes. Without NAME, list the recipes."
    epilog = examples("ldm recipe openmoji", "ldm recipe path/to/mine.yaml", "ldm recipe default --force")
    writer = commands.add_parser("recipe", help="Write params.yaml from a recipe", description=about, epilog=epilog)
    writer.more = _listing
    writer.add_argument("name", nargs="?", metavar="NAME", help="one of those below, or the path of a file like them")
    writer.add_argument("--force", action="store_true", help="over edits of params.yaml that would be lost")
    writer.set_defaults(command=_recipe)


def _listing() -> str:
    from ldm.tools import recipe

    return f"\n{recipe.listing()}\n"


def _check(options: argparse.Namespace) -> None:
    from ldm.tools import recipe
    from ldm.tools.check import check, launch_config

    params = check.whole(recipe.document(options.path))
    launch_config.check()
    corpus = f"{params.prepare.corpus.kind}, {params.prepare.image_size_px} px"
    print(f"{options.path} is complete and consistent ({corpus})")


def _kinds() -> str:
    """Every value of a params file that has a `kind`, with its possible kinds."""
    from ldm.tools.check.check import SECTIONS

    found = {key: kinds for name, section in SECTIONS.items() for key, kinds in config.kinds(section, name).items()}
    lines = [f"  {key}: {', '.join(kinds)}" for key, kinds in found.items()]
    return "\n".join(["", "values with a `kind`, and what it may be:", *lines, ""])


def _recipe(options: argparse.Namespace) -> None:
    from ldm.tools import recipe

    if not (options.name or recipe.names()):
        raise ConfigError(str(recipe.FOLDER), "no recipe", "those of a repository", "run from the repository root")
    print(recipe.write(options.name, options.force) if options.name else recipe.listing())
