"""`python -m ldm.tools.launch SCRIPT` starts a stage as `accelerate launch --quiet SCRIPT` does, but without its notice
about defaults and its traceback on Ctrl-C.

Nothing here imports torch before a script is started.
"""

import logging
import signal
import sys

from ldm.core.errors import UserError
from ldm.tools.check import launch_config


def main(arguments: list[str]) -> int:
    """Start a script with accelerate; options of `accelerate launch` may precede it. Returns the exit code if the
    script cannot be started."""
    try:
        launch_config.check()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    from accelerate.commands.launch import launch_command, launch_command_parser

    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    # The script gets a Ctrl-C too, saves its state and ends; until then the launcher waits.
    signal.signal(signal.SIGINT, lambda *_: None)
    launch_command(launch_command_parser().parse_args(["--quiet", *arguments]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
