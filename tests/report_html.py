"""A page as a browser reads it, and what must hold for every report."""

import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Parsed(HTMLParser):
    """Elements with their attributes; every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]


def check_needs_nothing_else(text: str) -> Parsed:
    """The page is well formed, and has no address to load anything from."""
    parsed = Parsed(text)
    for name in ("src", "href", "xlink:href"):
        assert all(value.startswith(("data:image/", "#")) for value in parsed.values(name)), name
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.elements}
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", text)) and "@import" not in text
    assert max(Counter(parsed.values("id")).values()) == 1, "an id is there once"
    assert {value.removeprefix("#") for value in parsed.values("href")} <= set(parsed.values("id"))
    assert all(attributes.get("alt") for tag, attributes in parsed.elements if tag == "img")
    return parsed
