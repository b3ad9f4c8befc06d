"""What reaches the page's server: a few routes, from the names it is known by, in requests of bounded size.

Gradio offers more than a page needs, such as fetching a URL for a visitor. Whatever is not on the list is not there.
"""

import re
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ldm.tools.web.guesses import Guesses
from ldm.tools.web.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_ROUTES = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login|logout|login_check|token|user|app_id)/?"
    r"|/(?:assets|static|svelte)/.*"
    r"|/gradio_api/(?:startup-events|queue/join|queue/data|upload|upload_progress|cancel|reset|info|config|login_check"
    r"|token|user|app_id|component_server|theme\.css)/?"
    r"|/gradio_api/(?:heartbeat|run|api|call)/.*"
)
_FILES = re.compile(r"/gradio_api/file=(.+)")
_UPLOADS = re.compile(r"/gradio_api/(?:upload|component_server)/?")
_JOINS = re.compile(r"/gradio_api/(?:queue/join|call/.*)")
_LOGIN = re.compile(r"/login/?")
_BUSY = b'{"detail": "the queue of the model is full; expected room for one more\\nfix: ask again in a minute"}'
_BUSY_SECONDS = 60
_HEADERS = {
    b"content-security-policy": b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    b"connect-src 'self' data: blob:; media-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
"""A page that asks nobody but this server, and that no other page has in a frame."""


class Gate:
    """An application before another one."""

    def __init__(self, inner: Application, files: Path, hosts: Collection[str] | None, limits: Limits) -> None:
        """files: the one folder of which files are served. hosts: names that a browser may call the server by; None =
        any. A page of another server cannot make a browser send any of them."""
        self._inner, self._files, self._hosts, self._limits = inner, files.resolve(), hosts, limits
        self._guesses = Guesses(limits.num_guesses, limits.guess_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is None:
                if _is_guess(scope):
                    self._guesses.add(_address(scope))
                await self._passed(scope, receive, send)
            else:
                await _answer(send, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, bytes, int | None] | None:
        """Status, text, and seconds after which it may be asked again, unless the request is let through."""
        headers = dict(scope["headers"])
        path = unquote(scope["path"])
        if self._hosts is not None and _host(headers.get(b"host", b"")) not in self._hosts:
            return 421, b"this server is not known by that name", None
        # Browsers say the origin of whatever could change something: a form of another page sends this host, too, and
        # the login of its visitor.
        origin = headers.get(b"origin")
        if origin is not None and _host(origin.partition(b"://")[2]) not in (self._hosts or _names(headers)):
            return 403, b"this server answers no other page", None
        if scope["method"] not in ("GET", "HEAD", "POST") or not self._is_route(path):
            return 404, b"there is nothing of that name", None
        if _is_guess(scope) and self._guesses.are_over(_address(scope)):
            seconds = self._limits.guess_seconds
            told = f"too many wrong passwords came from there\nfix: ask again in {seconds // 60} minutes"
            return 429, told.encode(), seconds
        most = self._most_bytes(path)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            return 413, f"the request is too large; expected at most {most} bytes".encode(), None
        if _UPLOADS.fullmatch(path) and self._limits.is_full(self._files):
            told = b"the disk of the page is full; expected room for a picture\nfix: ask again in an hour"
            return 429, told, self._limits.file_seconds
        return None

    def _is_route(self, path: str) -> bool:
        found = _FILES.fullmatch(path)
        if found is None:
            return _ROUTES.fullmatch(path) is not None and ".." not in path.split("/")
        return Path(found[1]).is_absolute() and Path(found[1]).resolve().is_relative_to(self._files)

    def _most_bytes(self, path: str) -> int:
        limits = self._limits
        return limits.body_bytes + (limits.upload_bytes if _UPLOADS.fullmatch(path) else 0)

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, is_replaced = unquote(scope["path"]), False
        rest = self._most_bytes(path)

        async def bounded() -> Message:
            nonlocal rest
            message = await receive()
            rest -= len(message.get("body", b""))
            # A body that says no length is cut where it becomes too long: what is left of it is no request.
            return message if rest >= 0 else {"type": "http.disconnect"}

        async def answered(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start":
                if _is_guess(scope) and message["status"] < 400:
                    self._guesses.take_back(_address(scope))
                if message["status"] == 503 and _JOINS.fullmatch(path):
                    is_replaced = True
                    await _answer(send, 429, _BUSY, _BUSY_SECONDS, b"application/json")
                    return
                kept = [(name, value) for name, value in message["headers"] if not _is_ours(name.lower())]
                message["headers"] = [*kept, *_HEADERS.items()]
            if not is_replaced:
                await send(message)

        # A server that ends leaves answers to open pages unfinished, which is no error.
        with suppress(CancelledError):
            await self._inner(scope, bounded, answered)


def _is_guess(scope: Scope) -> bool:
    """Whether the request says a password."""
    return scope["method"] == "POST" and _LOGIN.fullmatch(unquote(scope["path"])) is not None


def _address(scope: Scope) -> str:
    """Where a request comes from: the visitor, or the proxy before this server."""
    return scope["client"][0] if scope.get("client") else ""


def _names(headers: Mapping[bytes, bytes]) -> set[str]:
    """What a browser calls the server, by the headers of its request: a proxy before it may say another host. No page
    of another server can make a browser send these headers with names of its choice."""
    forwarded = headers.get(b"x-forwarded-host", b"").partition(b",")[0].strip()
    return {_host(name) for name in (headers.get(b"host", b""), forwarded)} - {""}


def _is_ours(header: bytes) -> bool:
    """Whether this gate alone says a header of an answer. Gradio's would let pages of all servers read it."""
    return header in _HEADERS or header.startswith(b"access-control-")


def _host(name: bytes) -> str:
    """A name as a header says it, without its port."""
    return re.sub(r":\d+$", "", name.decode("latin-1")).strip("[]").lower()


async def _answer(
    send: Send, status: int, text: bytes, seconds: int | None = None, kind: bytes = b"text/plain; charset=utf-8"
) -> None:
    """seconds: after which it may be asked again."""
    headers = [(b"content-type", kind), (b"content-length", str(len(text)).encode()), *_HEADERS.items()]
    headers += [] if seconds is None else [(b"retry-after", str(seconds).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
