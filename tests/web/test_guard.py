"""No test leaves this machine: what would is seen."""

import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error

from tests.import_closure import ROOT
from tests.web.conftest import launched
from tests.web.outside import Outside

REFUSED = """
import socket, sys
from pathlib import Path
from tests.web.served import guard
guard(Path(sys.argv[1]))
for reach in (
    lambda: socket.create_connection(("203.0.113.1", 80), timeout=1),
    lambda: socket.getaddrinfo("example.org", 80),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("203.0.113.2", 53)),
):
    try:
        reach()
    except OSError as error:
        assert "no test leaves" in str(error), error
with socket.create_server(("127.0.0.1", 0)) as here:
    socket.create_connection(here.getsockname(), timeout=5).close()
"""


def test_a_browser_that_asks_another_machine_is_seen(browser: Browser) -> None:
    with Outside() as outside:
        other = launched(browser.browser_type, outside)
        with pytest.raises(Error):
            other.new_page().goto("https://fonts.example.org/a.css", timeout=10_000)
        other.close()
    assert set(outside.requests) == {"CONNECT fonts.example.org:443 HTTP/1.1"}


def test_a_server_that_asks_another_machine_is_seen_and_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", REFUSED, str(log)], cwd=ROOT, check=True, timeout=60)
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["203.0.113.1", "example.org", "203.0.113.2"]
