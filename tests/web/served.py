"""`ldm` in a process that can reach no other machine: python -m tests.web.served LOG web --port 7860.

Each attempt is refused, and a line of LOG names it.
"""

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

NAMES = ("localhost", "", None)


def stays_here(host: Any) -> bool:
    """Whether a host, as a socket call names it, is this machine."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in NAMES:
        return True
    try:
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        return False


def guard(log: Path) -> None:
    """Refuse what leaves this machine from now on, in this process."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        match event:
            case "socket.getaddrinfo" | "socket.gethostbyname":
                host = arguments[0]
            case "socket.connect" | "socket.sendto" if isinstance(arguments[1], tuple):  # else a socket file
                host = arguments[1][0]
            case _:
                return
        if not stays_here(host):
            with log.open("a") as file:
                file.write(f"{event} {host}\n")
            raise OSError(f"{host}: no test leaves this machine")

    sys.addaudithook(audit)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
    from ldm.tools.cli import main

    sys.exit(main(sys.argv[2:]))
