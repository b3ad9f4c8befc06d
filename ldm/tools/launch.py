"""`python -m ldm.tools.launch SCRIPT` starts a stage as `accelerate launch --quiet SCRIPT` does, but without its notice
about defaults and its traceback on Ctrl-C.

Nothing here imports torch before a script is started. Where there is nothing to choose, nothing imports it at all: the
launcher's copy of torch would take a second or three to load, and a gigabyte for as long as the stage runs.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.core.errors import UserError
from ldm.tools.check import launch_config

_DEVICES = Path("/dev")
_ACCELERATORS = ("nvidia[0-9]*", "dxg", "kfd", "dri/renderD*", "davinci[0-9]*", "accel*", "cambricon*", "mtgpu*")
"""Device files of whatever torch could compute on besides the CPU."""
_LIKE_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}
"""What a stage asks of its environment (`ldm/compute/cores.py`, `devices.py`), with accelerate's default."""


def main(arguments: list[str]) -> int:
    """Start a script with accelerate; options of `accelerate launch` may precede it. Returns the exit code if the
    script cannot be started, or if one process on CPUs was all there was to start."""
    try:
        launch_config.check(_options(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    # The script gets a Ctrl-C too, saves its state and ends; until then the launcher waits.
    signal.signal(signal.SIGINT, lambda *_: None)
    if _is_one_process(arguments):
        return _start(arguments)
    from accelerate.commands.launch import launch_command, launch_command_parser

    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    _leave_time_to_save()
    launch_command(launch_command_parser().parse_args(["--quiet", *arguments]))
    return 0


def _options(arguments: Sequence[str]) -> dict[str, str | None]:
    """Options of `accelerate launch` by name, as far as can be told without it: up to the script."""
    found: dict[str, str | None] = {}
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if argument.endswith(".py"):
            break
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            found[name.replace("-", "_")] = value or (None if following.startswith("--") else following)
    return found


def _leave_time_to_save() -> None:
    """Give processes as many seconds between a signal and their kill as TORCH_ELASTIC_SHUTDOWN_TIMEOUT says. Older
    versions of torch do not read it: they have 30."""
    if seconds := os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        from torch.distributed.elastic.multiprocessing.api import PContext

        PContext.close.__defaults__ = (None, int(seconds))  # death_sig, timeout


def _is_one_process(arguments: list[str]) -> bool:
    """Whether accelerate would start one process, as far as can be told without it: no option, no config file, and no
    device but the CPU."""
    is_script = bool(arguments) and not arguments[0].startswith("-")
    has_devices = any(next(_DEVICES.glob(pattern), None) for pattern in _ACCELERATORS)
    return is_script and not launch_config.config_path().is_file() and not has_devices


def _start(arguments: list[str]) -> int:
    """Run a script in the environment that accelerate gives to one process; 1 if it fails, as accelerate has it."""
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    environment = os.environ | _LIKE_ACCELERATE | threads
    return int(subprocess.call([sys.executable, *arguments], env=environment) != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
