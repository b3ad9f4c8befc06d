"""`ldm completion`: what Tab completes."""

import argparse
from collections.abc import Iterator
from typing import Any

from ldm.tools.cli.options import Commands, examples

_SHELLS = ("bash", "zsh", "fish", "tcsh")
_FOLDERS, _FILES = ("DIR",), ("FILE", "PNG", "PATH", "TAR")
"""Metavars whose values are folders or files."""


def add(commands: Commands) -> None:
    """Add the command to a parser."""
    about = "Print a script by which a shell completes commands, options, their values, and names of files."
    epilog = examples(
        'eval "$(ldm completion bash)"    # in ~/.bashrc',
        "ldm completion bash > ~/.local/share/bash-completion/completions/ldm    # faster: made once",
        "ldm completion zsh > ~/.zfunc/_ldm    # a folder of $fpath",
        "ldm completion fish > ~/.config/fish/completions/ldm.fish",
        "ldm completion tcsh > ~/.ldm.tcsh    # then, in ~/.tcshrc: source ~/.ldm.tcsh",
    )
    parser = commands.add_parser("completion", help="Complete commands by Tab", description=about, epilog=epilog)
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(command=_complete)


def _complete(options: argparse.Namespace) -> None:
    import shtab

    for action in _actions(options.parser):
        words = {action.metavar} if isinstance(action.metavar, str) else set[str]()
        if words & {*_FOLDERS, *_FILES}:
            named: Any = action
            named.complete = shtab.DIRECTORY if words & {*_FOLDERS} else shtab.FILE
    print(shtab.complete(options.parser, options.shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Arguments of a parser and of all commands below it."""
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        if isinstance(action, Commands):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
