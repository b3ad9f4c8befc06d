"""The command `ldm`. There is a file per group of commands; each adds its own to the parser."""

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from ldm.core import system
from ldm.tools.cli import (
    average,
    benchmark,
    colours,
    completion,
    doctor,
    export,
    figures,
    generate,
    manifest,
    overview,
    params,
    replay,
    report,
    results,
    salvage,
    score,
    tasks,
    watch,
    web,
)
from ldm.tools.cli.options import Command

_GROUPS = (
    generate,
    tasks,
    web,
    score,
    benchmark,
    replay,
    export,
    figures,
    report,
    average,
    params,
    manifest,
    salvage,
    watch,
    results,
    doctor,
    completion,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of `system.run`."""

    def work() -> None:
        options = parser().parse_args(arguments)
        options.command(options)

    return system.run(work, told=lambda error: colours.of_error(error, sys.stderr))


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. Its default `parser` is itself, for commands that look at all of them."""
    about = "Latent-diffusion text-to-image models. Without a command: what can be done here next."
    root = Command(prog="ldm", description=about, epilog=overview.EXAMPLES)
    root.add_argument("--version", action="version", version=f"ldm {_version('ldm')}, torch {_version('torch')}")
    root.set_defaults(command=overview.show, parser=root)
    commands = root.add_subparsers(metavar="COMMAND", parser_class=Command)
    for group in _GROUPS:
        group.add(commands)
    return root


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
