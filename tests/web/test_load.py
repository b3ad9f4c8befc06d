"""The page under load: 20 clients ask for 200 things, of which some are nonsense."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.web.client import PREFIX, Form, messages
from tests.web.conftest import SECONDS, Server

NUM_CLIENTS = 20
NUM_REQUESTS = 10
MAX_GROWTH = 300 * 2**20
"""Bytes of memory that the server may take for all this. It keeps pictures and files within limits of its own."""


@dataclass
class Account:
    """What became of all requests."""

    answers: Counter[str] = field(default_factory=Counter)
    joined: list[str] = field(default_factory=list)
    """Seeds of requests that the queue took, in order."""
    started: list[str] = field(default_factory=list)
    """Seeds of requests that were begun, in order."""
    positions: list[int] = field(default_factory=list)
    """Places in the queue that clients were told."""
    growth: int = 0


class Client:
    """One of those who ask."""

    def __init__(self, url: str, number: int, form: Form, account: Account, turn: asyncio.Lock) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=2 * SECONDS)
        self._number, self._form, self._account, self._turn = number, form, account, turn

    async def ask_all(self) -> None:
        """Good requests two at a time, and a bad one after each pair."""
        async with self._http:
            for place in range(0, NUM_REQUESTS, 5):
                await asyncio.gather(*(self._draw(place + offset) for offset in range(3)))
                await self._nonsense(place)
                await self._refused(place)

    async def _draw(self, place: int) -> None:
        await self._asked(f"{self._number:02d}-{place}", Prompt="a red star", Seed=1000 * self._number + place)

    async def _refused(self, place: int) -> None:
        """A value that no params model takes."""
        bad = ({"Steps": -5}, {"Seed": "x"}, {"Prompt": "a " * 60_000}, {"Steps": 10**6})
        await self._asked(f"{self._number:02d}-{place}-bad", **bad[(self._number + place) % len(bad)])

    async def _asked(self, name: str, **values: Any) -> None:
        # One joins after the other, so that there is an order to keep.
        async with self._turn:
            body = self._form.filled(**values) | {"session_hash": name}
            reply = await self._http.post(f"{PREFIX}/queue/join", json=body)
            if reply.status_code == 200:
                self._account.joined.append(name)
        if reply.status_code != 200:
            self._account.answers[f"status {reply.status_code}"] += 1
            return
        async for message in messages(self._http, name):
            match message["msg"]:
                case "estimation" if message.get("rank") is not None:
                    self._account.positions.append(message["rank"])
                case "process_starts":
                    self._account.started.append(name)
                case "process_completed":
                    self._account.answers["image" if message["success"] else "error"] += 1
                    return

    async def _nonsense(self, place: int) -> None:
        """What no page sends."""
        join = f"{PREFIX}/queue/join"
        kinds = (
            lambda: self._http.post(join, content=b"{"),
            lambda: self._http.post(join, json={"fn_index": "x", "data": []}),
            lambda: self._http.get(f"{PREFIX}/file=/etc/passwd"),
            lambda: self._http.post(f"{PREFIX}/upload", content=b"\0" * 100),
        )
        reply = await kinds[(self._number + place) % len(kinds)]()
        assert 400 <= reply.status_code < 500, reply.text
        self._account.answers["nonsense"] += 1


async def load(server: Server) -> Account:
    config = httpx.get(f"{server.url}config", timeout=SECONDS).json()
    form, account, turn = Form.of(config, "generate-generate"), Account(), asyncio.Lock()
    await Client(server.url, 99, form, Account(), turn).ask_all()  # what is loaded once, is loaded now
    before = server.process.memory_info().rss
    clients = [Client(server.url, number, form, account, turn) for number in range(NUM_CLIENTS)]
    await asyncio.gather(*(client.ask_all() for client in clients))
    account.growth = server.process.memory_info().rss - before
    return account


@pytest.fixture(scope="module")
def account(server: Server) -> Account:
    with ThreadPoolExecutor(1) as thread:  # this one may have Playwright's loop
        return thread.submit(asyncio.run, load(server)).result()


def test_every_request_is_answered(account: Account, server: Server) -> None:
    assert account.answers.total() == NUM_CLIENTS * NUM_REQUESTS
    assert set(account.answers) <= {"image", "error", "nonsense", "status 429"}, account.answers
    assert min(account.answers[kind] for kind in ("image", "error", "nonsense", "status 429")) > 0, account.answers
    assert httpx.get(server.url, timeout=SECONDS).status_code == 200


def test_who_came_first_is_served_first(account: Account) -> None:
    drawn = [name for name in account.started if not name.endswith("bad")]  # errors take no time, and have no order
    assert drawn == [name for name in account.joined if name in set(drawn)]
    assert len(drawn) > NUM_CLIENTS


def test_clients_are_told_their_places(account: Account) -> None:
    assert max(account.positions) > 4


def test_memory_is_bounded(account: Account) -> None:
    assert account.growth < MAX_GROWTH
