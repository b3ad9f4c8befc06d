"""The page without a browser: its forms as its server describes them, sent as the page sends them."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

import httpx

PREFIX = "gradio_api"


@dataclass(frozen=True)
class Form:
    """What a button sends: values of components, in order."""

    number: int
    """Of the function that the button calls."""
    labels: tuple[str, ...]
    values: tuple[Any, ...]
    """Those that a fresh page sends."""

    @classmethod
    def of(cls, config: dict[str, Any], element: str) -> Self:
        """The form of a button. config: what the page's server says of itself. element: the id of the button."""
        components = {component["id"]: component["props"] for component in config["components"]}
        button = next(number for number, props in components.items() if props.get("elem_id") == element)
        clicks = [each for each in config["dependencies"] if [button, "click"] in each["targets"]]
        called = max(clicks, key=lambda each: len(each["inputs"]))  # others only change how the page looks
        inputs = [components[number] for number in called["inputs"]]
        return cls(
            number=called["id"],
            labels=tuple(str(props.get("label")) for props in inputs),
            values=tuple(props.get("value") for props in inputs),
        )

    def filled(self, **values: Any) -> dict[str, Any]:
        """What is sent when some fields, by label, have other values."""
        assert set(values) <= set(self.labels), self.labels
        pairs = zip(self.labels, self.values, strict=True)
        return {"fn_index": self.number, "data": [values.get(label, value) for label, value in pairs]}


async def messages(client: httpx.AsyncClient, session: str) -> AsyncIterator[dict[str, Any]]:
    """What the server tells a page, one event after the other, until it has nothing more to tell."""
    async with client.stream("GET", f"{PREFIX}/queue/data", params={"session_hash": session}) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data:"):
                message = json.loads(line.removeprefix("data:"))
                if message["msg"] == "close_stream":
                    return
                yield message
