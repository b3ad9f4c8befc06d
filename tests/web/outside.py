"""A proxy that stands for all other machines: it writes down what is asked of it, and answers nothing."""

import re
import threading
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Self

BROWSERS_OWN = re.compile(r" (http://)?[\w.-]+\.(google|googleapis|gvt1)\.com[:/]")
"""What Chromium asks for by itself, whatever its flags say: updates, dictionaries, accounts. It gets no answer either;
that the page itself asks none of these is seen in the page."""


class Outside(ThreadingTCPServer):
    """Serves from `with` on."""

    daemon_threads = True
    requests: list[str]
    """First lines of requests, such as "GET http://example.org/ HTTP/1.1"; the browser's own are left out."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.requests = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Asked(StreamRequestHandler):
    server: Outside

    def handle(self) -> None:
        line = self.rfile.readline().decode(errors="replace").strip()
        if line and not BROWSERS_OWN.search(line):
            self.server.requests.append(line)
        self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
