"""The tutorial as a notebook: `python -m docs.notebook` writes docs/tutorial.ipynb from docs/tutorial.md."""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTEBOOK = ROOT / "docs/tutorial.md", ROOT / "docs/tutorial.ipynb"
_START = {"sh": "%%bash -e\n"}
_WHERE = 'import os\n\nif os.path.basename(os.getcwd()) == "docs":\n    os.chdir("..")  # commands run in the root'


def cells(page: str) -> list[tuple[str, str]]:
    """(kind, text) of each part of a page: prose, a block of `sh`, a block of `python`."""
    prose, *others = re.split(r"^```(sh|python)\n(.*?)^```\n", page, flags=re.MULTILINE | re.DOTALL)
    found = [("prose", prose)]
    for kind, code, after in zip(others[::3], others[1::3], others[2::3], strict=True):
        found += [(kind, code), ("prose", after)]
    return [(kind, text.strip()) for kind, text in found if text.strip()]


def notebook(page: str) -> str:
    """The notebook of a page, as the text of its file. A command that fails ends its cell."""
    made = [new_code_cell(_WHERE)]
    for kind, text in cells(page):
        made.append(new_markdown_cell(text) if kind == "prose" else new_code_cell(_START.get(kind, "") + text))
    for number, cell in enumerate(made):
        cell["id"] = f"part-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(new_notebook(cells=made, metadata={"kernelspec": kernel})) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
