"""The command `ldm`. There is a file per group of commands; each adds its own to the parser."""

import argparse
from collections.abc import Sequence
from importlib import metadata

from ldm.core import system
from ldm.tools.cli import (
    average,
    benchmark,
    export,
    figures,
    generate,
    manifest,
    params,
    replay,
    results,
    salvage,
    score,
    tasks,
    watch,
)
from ldm.tools.cli.options import Command

_GROUPS = (
    generate,
    tasks,
    score,
    benchmark,
    replay,
    export,
    figures,
    average,
    params,
    manifest,
    salvage,
    watch,
    results,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of `system.run`."""

    def work() -> None:
        options = _parser().parse_args(arguments)
        options.command(options)

    return system.run(work)


def _parser() -> argparse.ArgumentParser:
    about = "Latent-diffusion text-to-image models; run from the repository root."
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="ldm", description=about, epilog=generate.EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"ldm {_version('ldm')}, torch {_version('torch')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Command)
    for group in _GROUPS:
        group.add(commands)
    return parser


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
