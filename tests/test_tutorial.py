"""The tutorial's commands run from the first to the last, in the notebook that is made of it."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from docs import notebook
from tests.repository import BINARIES, Repository


def test_the_notebook_is_the_tutorial() -> None:
    page = notebook.PAGE.read_text(encoding="utf-8")
    assert notebook.NOTEBOOK.read_text(encoding="utf-8") == notebook.notebook(page), "run python -m docs.notebook"


def test_every_block_is_a_cell() -> None:
    page = "# A\n\n```sh\nls\n```\n\nThen:\n\n```python\nf()\n```\n"
    assert notebook.cells(page) == [("prose", "# A"), ("sh", "ls"), ("prose", "Then:"), ("python", "f()")]


def test_the_notebook_runs(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tiny model. `make demo` has been done: the fixture runs what it runs, `dvc repro`."""
    root = repository.copy(tmp_path / "clone").root
    edited = (root / "params.yaml").read_text() + "# an edit of whoever reads it\n"
    (root / "params.yaml").write_text(edited)
    (root / ".venv").mkdir()
    (root / ".venv/bin").symlink_to(BINARIES)
    cells = nbformat.read(root / "docs/tutorial.ipynb", as_version=4)
    cells.cells = [cell for cell in cells.cells if cell.source != "%%bash -e\nmake demo"]
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # else the kernel writes into the user's home
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    NotebookClient(cells, timeout=600, resources={"metadata": {"path": str(root / "docs")}}).execute()
    said = ["".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in cells.cells]
    assert any("torch.Size([2, 3, 32, 32])" in part for part in said)
    assert any("equal in all" in part for part in said), "ldm replay"
    (dry,) = (part for part in said if "Running stage" in part)
    assert set(re.findall(r"Running stage '(\w+)'", dry)) == {"check", "sample", "model"}
    assert (root / "pictures/0001.png").is_file()
    assert (root / "params.yaml").read_text() == edited, "as it was before the tutorial"
