"""`ldm web`."""

import argparse
from pathlib import Path

from ldm.core import system
from ldm.core.errors import ConfigError
from ldm.tools.cli import drawing, output
from ldm.tools.cli import options as forms
from ldm.tools.model.parts import Parts

_LEAST_CHARACTERS = 12
_EXAMPLES = forms.examples(
    "ldm web    # the model of the repository, on this machine alone",
    "ldm web --model DIR --port 8000",
    "ldm web --host 0.0.0.0 --password-file password.txt    # for other machines, with user ldm and this password",
)


def add(commands: forms.Commands) -> None:
    """Add the command to a parser."""
    about = "Serve a page in which the model can be used without a shell: text to image, all tasks, and replays."
    parser = commands.add_parser("web", help="Serve the model as a page", description=about, epilog=_EXAMPLES)
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to serve at (127.0.0.1: this machine alone)")
    add("--port", type=forms.whole(0, 65535), default=7860, metavar="N", help="port (7860); 0 = any free one")
    add("--password-file", type=Path, metavar="FILE", help="file with the password of user ldm, on one line")
    drawing.add_model(parser)
    parser.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> None:
    from ldm.tools.web import server

    server.require()
    address = server.Address(options.host, options.port, _password(options.password_file))
    if address.is_public and address.password is None:
        found, expected = "an address that others can reach, and no password", "a password for it"
        raise ConfigError(f"--host {options.host}", found, expected, "write one into a file, --password-file FILE")
    parts = Parts.of(options.model)
    with output.plain_warnings():
        server.serve(parts, lambda: drawing.load(options, parts), address)


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise system.explain(error, str(path), ConfigError) from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "bytes that are not UTF-8", "a password", "save it as UTF-8") from None
    if len(text) < _LEAST_CHARACTERS or "\n" in text:
        found = "several lines" if "\n" in text else f"a password of {len(text)} characters"
        raise ConfigError(
            str(path), found, f"one line of at least {_LEAST_CHARACTERS} characters", "choose a longer one"
        )
    return text
