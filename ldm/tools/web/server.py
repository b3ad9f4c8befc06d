"""The server of the page: one process, one model, files in a folder of its own that is gone when it ends."""

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.core.errors import MachineError
from ldm.tools.model.parts import Parts
from ldm.tools.web.limits import DEFAULTS, Limits

if TYPE_CHECKING:
    import uvicorn

    from ldm.tools.pipeline import Pipeline
    from ldm.tools.web.gate import Gate
    from ldm.tools.web.studio import Studio

USER = "ldm"
"""The name that goes with the password."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FILES = "GRADIO_TEMP_DIR"
"""The variable by which Gradio is told where files of visitors go."""
_LOOK_SECONDS = 60.0
"""Between two looks for files that are too old."""


@dataclass(frozen=True)
class Address:
    """Where the page is served. password: None = nobody is asked for one."""

    host: str
    port: int
    password: str | None

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach it."""
        return self.host not in _LOOPBACK


def require() -> None:
    """MachineError: Gradio is not installed."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise MachineError("ldm web", "no package gradio", "the package that makes the page", 'pip install "ldm[web]"')


def bound(address: Address) -> socket.socket:
    """A socket that listens at the address. MachineError: another program has it, or it is none of this machine."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address.host, address.port))
        found.listen()  # from now on no other program gets the address; who asks early waits for the model
    except (OSError, UnicodeError) as error:
        found.close()
        where, fix = f"{address.host}:{address.port}", "name another one by --host or --port"
        reason = getattr(error, "strerror", None) or str(error)
        raise MachineError(where, reason, "a free address of this machine", fix) from None
    return found


@contextmanager
def application(
    parts: Parts, load: "Callable[[], Pipeline]", address: Address, limits: Limits = DEFAULTS
) -> "Generator[Gate]":
    """The page as an ASGI application, with the model loaded. Errors: as `load`."""
    with tempfile.TemporaryDirectory(prefix="ldm-web-") as folder:
        # Read when Gradio is imported and when a component is made: no call home, and files in this folder alone.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", _FILES: folder}
        from ldm.tools.web.studio import Studio

        studio = Studio(load, limits)
        try:
            with _swept(Path(folder), limits.file_seconds):
                yield _gated(parts, studio, address, Path(folder))
        finally:
            studio.close()
            os.environ.pop(_FILES, None)


@contextmanager
def _swept(folder: Path, seconds: float) -> Generator[None]:
    """A block in which files of this folder are deleted once they are so many seconds old."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(min(seconds, _LOOK_SECONDS)):
            sweep(folder, seconds)

    thread = threading.Thread(target=work, name="sweeper")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def sweep(folder: Path, seconds: float) -> None:
    """Delete what is in a folder and was not changed for so many seconds: files, and folders that are empty.

    Gradio's own cleaner misses images that were made and uploads that were broken off.
    """
    oldest = time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        with suppress(OSError):  # Gradio took it away meanwhile, or the folder is not empty
            if path.stat().st_mtime < oldest:
                path.rmdir() if path.is_dir() else path.unlink()


def _gated(parts: Parts, studio: "Studio", address: Address, folder: Path) -> "Gate":
    import gradio as gr
    from fastapi import FastAPI

    from ldm.tools.web.examples import Examples
    from ldm.tools.web.gate import Gate
    from ldm.tools.web.page import CSS, HEAD, Page, theme

    page = Page(studio, parts.drawing, parts.tasks, Examples.of(parts, studio.words)).blocks()
    page.state_session_capacity = 200
    page.queue(max_size=studio.limits.num_waiting, api_open=False)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        auth=(USER, address.password) if address.password else None,
        footer_links=[],
        run_history=False,
        max_file_size=studio.limits.upload_bytes,
        show_error=False,
        ssr_mode=False,
        theme=theme(),
        css=CSS,
        head=HEAD,
    )
    return Gate(app, folder, None if address.is_public else _LOOPBACK, studio.limits)


def uvicorn_server(app: "Gate") -> "uvicorn.Server":
    """What serves an application. Pages that are open do not keep it from ending."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=2)
    return uvicorn.Server(config)


def serve(parts: Parts, load: "Callable[[], Pipeline]", address: Address) -> None:
    """Serve the page until Ctrl-C or SIGTERM. Errors: as `bound` and `application`."""
    # The server ends on this signal, and raises it again; files of visitors are to be gone by then.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with bound(address) as listening, application(parts, load, address) as app:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)
        uvicorn_server(app).run(sockets=[listening])
