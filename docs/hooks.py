"""What mkdocs does beyond docs/*.md: pages made from the code, links into the code, formulas and graphs."""

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from mkdocs.structure.files import File, Files

from docs import drawn, reference

_OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site that are files in the root."""


def on_config(config: Any) -> Any:
    """Add the reference to the navigation."""
    config.nav = [*config.nav, {"Reference": reference.navigation()}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    outside = {page: (ROOT / name).read_text(encoding="utf-8") for page, name in _OUTSIDE.items()}
    outside["index.md"] = re.sub(r'"docs/', '"', outside["index.md"].replace("](docs/", "]("))
    outside["contributing.md"] = outside["contributing.md"].replace("](docs/", "](")
    for page, text in {**outside, **reference.pages()}.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Draw what needs drawing; lead links out of docs/ to the reference of the code, or nowhere."""
    up = "../" * page.file.src_uri.count("/")

    def leading(found: re.Match[str]) -> str:
        label, target = found[1], found[2]
        place = os.path.normpath(f"docs/{page.file.src_uri}/../{target}")
        if page.file.src_uri in _OUTSIDE:
            place = target
        if page_of := {name: other for other, name in _OUTSIDE.items()}.get(place.partition("#")[0]):
            return f"[{label}]({up}{page_of})"
        if place.startswith("ldm/") and place.endswith(".py"):
            module, name = place.removesuffix(".py").replace("/", "."), label.strip("`")
            is_name = re.fullmatch(r"`[A-Za-z_]\w*`", label)
            return f"[{label}]({up}{reference.module_path(place)}#{f'{module}.{name}' if is_name else module})"
        return label

    markdown = re.sub(r"(?<!!)\[([^\]]+)\]\(((?:\.\./|LICENSE|CONTRIBUTING|README)[^)]*)\)", leading, markdown)
    return drawn.formulas(drawn.graphs(markdown))
