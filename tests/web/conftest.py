"""The page, served by `ldm web` with a tiny model, and a browser that can reach this machine alone."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, BrowserType, expect, sync_playwright

from ldm.tools.pipeline import Pipeline
from tests import trained_data
from tests.import_closure import ROOT
from tests.web.outside import Outside
from tests.web.person import Person

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 375, "height": 812}
MISSING = """chromium: not on PATH; expected the browser that these tests drive
fix: Debian: apt-get install chromium"""
SECONDS = 90
"""How long a person waits for the page before they give up: two cores may have other work."""


@dataclass(frozen=True)
class Server:
    """A running `ldm web`."""

    url: str
    process: psutil.Process
    log: Path
    """What it printed."""
    attempts: Path
    """What it tried to reach on other machines."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a repository after training."""
    folder = tmp_path_factory.mktemp("trained")
    trained_data.make(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(model: Path) -> Pipeline:
    """The model, without a page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(model)
        return Pipeline.load()


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`ldm web` in that folder."""
    folder = tmp_path_factory.mktemp("server")
    log, attempts, port = folder / "log.txt", folder / "attempts.txt", free_port()
    attempts.touch()
    files = folder / "files"
    files.mkdir()
    command = [sys.executable, "-m", "tests.web.served", str(attempts), "web", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(files)}
    with log.open("w") as out:
        running = subprocess.Popen(command, cwd=model, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(port, running, log)
        yield Server(f"http://127.0.0.1:{port}/", psutil.Process(running.pid), log, attempts)
        assert running.poll() is None, f"the server ended: {log.read_text()}"
        # A visitor who leaves amid an upload is no error, though Starlette logs a traceback.
        assert not re.findall(r"^[\w.]+(?:Error|Exception)\b.*", log.read_text(), re.MULTILINE), log.read_text()
    finally:
        running.terminate()
        running.wait(30)
    assert not list(files.iterdir()), "files of visitors are gone when the server was told to end"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port: int, running: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 2 * SECONDS
    while time.monotonic() < end:
        assert running.poll() is None, log.read_text()
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"no page on port {port}: {log.read_text()}")


@pytest.fixture(scope="session")
def outside() -> Iterator[Outside]:
    """What the browser asks other machines for: none answers."""
    with Outside() as outside:
        yield outside


@pytest.fixture(scope="session")
def browser(outside: Outside) -> Iterator[Browser]:
    """Debian's Chromium; all that leaves this machine goes to `outside`, its own requests too."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=SECONDS * 1000)
        browser = launched(playwright.chromium, outside)
        yield browser
        browser.close()


def launched(chromium: BrowserType, outside: Outside) -> Browser:
    """Debian's Chromium, for which `outside` is all other machines."""
    path = shutil.which("chromium")
    if path is None:
        pytest.exit(MISSING, returncode=5)
    return chromium.launch(executable_path=path, args=[*FLAGS, f"--proxy-server={outside.address}"])


@pytest.fixture
def traits() -> dict[str, Any]:
    """What a person's browser has that is other than a desktop's, such as viewport and color_scheme."""
    return {}


@pytest.fixture
def context(browser: Browser, server: Server, outside: Outside, traits: dict[str, Any]) -> Iterator[BrowserContext]:
    """A browser of a person who was never here. At the end, nothing has failed in it or left this machine."""
    failures: list[str] = []
    asked: list[str] = []
    with browser.new_context(**{"viewport": DESKTOP, "base_url": server.url, "locale": "en", **traits}) as context:
        context.set_default_timeout(SECONDS * 1000)
        context.on("weberror", lambda error: failures.append(str(error.error)))
        context.on("request", lambda request: asked.append(request.url))
        yield context
    assert not failures
    assert asked and not [url for url in asked if not url.startswith((server.url, "data:", "blob:"))]
    assert not outside.requests and not server.attempts.read_text()


@pytest.fixture
def person(context: BrowserContext) -> Person:
    """A person who has opened the page."""
    return Person.before(context)
