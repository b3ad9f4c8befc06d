"""What two runs of one commit have in common, as a table of docs/resuming.md; `python -m tests.promises` writes it."""

from tests.import_closure import ROOT

PAGE = ROOT / "docs/resuming.md"
OPENING, CLOSING = "<!-- promises -->\n", "<!-- /promises -->"
PROMISES = {
    "nothing, or one of them was stopped or killed and resumed": ("equal", "equal in every bit"),
    "number of threads": ("equal", "weights within 1e-5 after 20 steps (float32)"),
    "number of processes, or of accumulation passes": (
        "equal",
        "losses within 1e-5 (float32) or 2e-3 (bf16) over 20 steps; with a discriminator, nothing is promised",
    ),
    "kind of CPU, with the same vector instructions": (
        "equal",
        "equal as far as MKL keeps its word, in one precision: docs/cpus.md",
    ),
    "what `precision: auto` came to": ("equal", "nothing is promised; the passports say what it was"),
    "vector instructions of the CPU, or kind of device": ("equal: drawn on the CPU", "nothing is promised"),
}
"""What differs -> (samples, captions, noise, times and dropout; weights and losses)."""


def table() -> str:
    """The promises as Markdown."""
    head = ["| what differs | samples, captions, noise, times, dropout | weights and losses |", "| --- | --- | --- |"]
    return "\n".join([*head, *(f"| {key} | {drawn} | {made} |" for key, (drawn, made) in PROMISES.items())]) + "\n"


def written(page: str) -> str:
    """The page with this table between its marks."""
    before, opening, rest = page.partition(OPENING)
    _, closing, after = rest.partition(CLOSING)
    assert opening and closing, "docs/resuming.md has no marks for the promises"
    return f"{before}{opening}{table()}{closing}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
