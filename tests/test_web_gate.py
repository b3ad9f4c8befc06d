"""What reaches the server of the page, and the command that starts it."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import pytest

from ldm.core.errors import MachineError
from ldm.tools import cli
from ldm.tools.cli import web
from ldm.tools.web import gate, server
from ldm.tools.web.guesses import Guesses
from ldm.tools.web.limits import Limits

LIMITS = Limits(body_bytes=100, upload_bytes=50, disk_bytes=1000)


def answer(
    folder: Path,
    path: str,
    method: str = "GET",
    host: str = "localhost:7860",
    body: list[bytes] | None = None,
    headers: dict[str, str] | None = None,
    status: int = 200,
    hosts: tuple[str, ...] | None = ("localhost", "::1"),
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and text for a request before an application that says how much of the body it was given."""
    sent: list[dict[str, Any]] = []
    chunks = [*(body or [b""])]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        num_bytes, more = 0, True
        while more:
            message = await receive()
            num_bytes, more = num_bytes + len(message.get("body", b"")), message.get("more_body", False)
        headers = [(b"x-frame-options", b"x"), (b"Access-Control-Allow-Origin", b"*")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": str(num_bytes).encode()})

    given = [(b"host", host.encode()), *((name.encode(), value.encode()) for name, value in (headers or {}).items())]
    scope = {"type": "http", "method": method, "path": path, "headers": given}
    asyncio.run(gate.Gate(inner, folder, hosts, LIMITS)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/assets/index.js", "/gradio_api/queue/join", "/gradio_api/heartbeat/abc", "/login"],
)
def test_a_page_needs_a_few_routes(tmp_path: Path, path: str) -> None:
    status, headers, _ = answer(tmp_path, path)
    assert status == 200 and headers[b"x-content-type-options"] == b"nosniff"
    assert b"default-src 'self'" in headers[b"content-security-policy"], "the page asks nobody but this server"


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/proxy=http://example.org", "/gradio_api/vibe-edit/", "/gradio_api/process_recording"),
        *("/monitoring", "/gradio_api/stream/x", "/gradio_api/deep_link", "/docs", "/openapi.json", "/gradio_api/runs"),
        *("/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/gradio_api/file=etc/passwd", "/assets/../../x"),
        *("/gradio_api/file=http://example.org/x", "/gradio_api/file/etc/passwd", "/assets/%2e%2e/x", "//etc/passwd"),
    ],
)
def test_there_is_nothing_else(tmp_path: Path, path: str) -> None:
    assert answer(tmp_path, path)[0] == 404


def test_files_of_one_folder_are_served(tmp_path: Path) -> None:
    folder = tmp_path / "visitors"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    for path, status in (
        (folder / "a.png", 200),
        (folder / "link", 404),
        (folder / "../secret", 404),
        (Path(f"{folder}-other/a.png"), 404),
        (Path(str(folder).replace("/", "%2f")) / "../secret", 404),
    ):
        assert answer(folder, f"/gradio_api/file={path}")[0] == status, path


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:7860", 200),
        ("example.org", 421),
        ("", 421),
        ("localhost.x", 421),
    ],
)
def test_no_other_page_can_make_a_browser_ask_this_server(tmp_path: Path, host: str, status: int) -> None:
    assert answer(tmp_path, "/", host=host)[0] == status
    assert answer(tmp_path, "/", host=host, hosts=None)[0] == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:7860", 200),
        ("http://[::1]:7860", 200),
        ("https://example.org", 403),
        ("http://localhost.example.org", 403),
        ("http://localhost@example.org", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_no_other_page_can_press_a_button_here(tmp_path: Path, origin: str, status: int) -> None:
    """A form of another page reaches this machine by its own name."""
    assert answer(tmp_path, "/gradio_api/upload", "POST", headers={"origin": origin})[0] == status


@pytest.mark.parametrize(
    ("origin", "host", "forwarded", "status"),
    [
        ("https://draw.example.org", "draw.example.org", None, 200),
        ("https://draw.example.org:8443", "draw.example.org", None, 200),
        ("https://draw.example.org", "127.0.0.1:7860", "draw.example.org, inner", 200),
        ("https://evil.example", "draw.example.org", None, 403),
        ("https://evil.example", "127.0.0.1:7860", "draw.example.org", 403),
        ("null", "draw.example.org", None, 403),
        ("null", "", "", 403),
    ],
)
def test_no_other_page_can_use_the_login_of_a_visitor(
    tmp_path: Path, origin: str, host: str, forwarded: str | None, status: int
) -> None:
    """Gradio's cookie goes with requests of all pages, and behind a proxy any name is ours."""
    given = {"origin": origin} | ({} if forwarded is None else {"x-forwarded-host": forwarded})
    assert answer(tmp_path, "/gradio_api/run/cancel", "POST", host, headers=given, hosts=None)[0] == status


def test_no_other_page_reads_an_answer(tmp_path: Path) -> None:
    headers = answer(tmp_path, "/config", headers={"origin": "http://localhost:7860"})[1]
    assert not [name for name in headers if name.lower().startswith(b"access-control-")]


def test_a_request_has_a_size(tmp_path: Path) -> None:
    api = "/gradio_api/queue/join"
    for path, most in ((api, 100), ("/gradio_api/upload", 150)):
        for num_bytes, status in ((most, 200), (most + 1, 413)):
            told = {"content-length": str(num_bytes)}
            assert answer(tmp_path, path, "POST", body=[b"x" * num_bytes], headers=told)[0] == status
    assert answer(tmp_path, api, "POST", headers={"content-length": "-1"})[0] == 413
    chunks = [b"x" * 60] * 3
    assert answer(tmp_path, api, "POST", body=chunks)[2] == b"60", "one of no declared size ends where it is too long"
    assert answer(tmp_path, "/", "DELETE")[0] == 404


def test_uploads_end_where_the_disk_does(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 1001)
    status, headers, text = answer(tmp_path, "/gradio_api/upload", "POST")
    assert status == 429 and headers[b"retry-after"] == b"3600" and b"fix: " in text
    assert answer(tmp_path, "/")[0] == 200


def test_a_full_queue_is_429(tmp_path: Path) -> None:
    status, headers, text = answer(tmp_path, "/gradio_api/queue/join", "POST", status=503)
    assert status == 429 and headers[b"retry-after"] == b"60" and b"the queue of the model is full" in text
    assert answer(tmp_path, "/config", status=503)[0] == 503


@pytest.mark.parametrize(
    ("arguments", "password", "code", "message"),
    [
        (["--host", "0.0.0.0"], None, 2, "--host 0.0.0.0: an address that others can reach, and no password"),
        (["--host", "192.168.1.7"], None, 2, "--host 192.168.1.7: an address that others can reach, and no password"),
        (["--password-file", "nowhere"], None, 2, "nowhere: No such file"),
        (["--password-file", "p"], "short", 2, "p: a password of 5 characters; expected one line of at least 12"),
        (["--password-file", "p"], "one line\nand another", 2, "p: several lines"),
        ([], None, 2, ".: no params.yaml and no passport.json; expected a repository or a model folder"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    password: str | None,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if password is not None:
        Path("p").write_text(password)
    assert cli.main(["web", *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(message) and lines[1].startswith("fix: "), lines


def test_the_command_serves_on_this_machine_alone_unless_told_otherwise() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    web.add(commands)  # pyright: ignore[reportArgumentType]
    options = commands.choices["web"].parse_args([])
    assert (options.host, options.port, options.password_file, options.model) == ("127.0.0.1", 7860, None, Path())


def test_a_port_that_is_taken_is_said() -> None:
    with server.bound(server.Address("127.0.0.1", 0, None)) as first:
        port = first.getsockname()[1]
        with pytest.raises(Exception, match=rf"127.0.0.1:{port}: Address already in use; .*\nfix: name another one by"):
            server.bound(server.Address("127.0.0.1", port, None))


@pytest.mark.parametrize("host", ["203.0.113.1", "a..b"])
def test_an_address_that_is_none_is_said(host: str) -> None:
    with pytest.raises(MachineError, match=f"{host}:0: .*; expected a free address of this machine\nfix: "):
        server.bound(server.Address(host, 0, None))


def test_an_address_is_public_unless_it_is_of_this_machine_alone() -> None:
    assert not any(server.Address(host, 0, None).is_public for host in ("127.0.0.1", "localhost", "::1"))
    assert all(server.Address(host, 0, None).is_public for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))


def test_wrong_passwords_are_forgotten_after_a_while() -> None:
    now = [0.0]
    guesses = Guesses(2, 60, lambda: now[0])
    for _ in range(2):
        assert not guesses.are_over("a")
        guesses.add("a")
    assert guesses.are_over("a") and not guesses.are_over("b")
    guesses.take_back("a")
    assert not guesses.are_over("a")
    guesses.add("a")
    now[0] = 61
    guesses.add("b")
    assert not guesses.are_over("a") and list(guesses._times) == ["b"], "no list that grows for ever"
