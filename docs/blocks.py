"""Blocks of a page that a command writes, between marks that no reader sees."""


def rewritten(page: str, name: str, block: str) -> str:
    """The page with another block between the marks of that name."""
    before, opening, rest = page.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    assert opening and closing, f"the page has no markers for {name}"
    return f"{before}{opening}{block}{closing}{after}"
