"""Ten pictures of one drawing of OpenMoji that has no name, and so is in no corpus: a subject to teach to a model.

`python -m docs.subject draw` writes the pictures; `python -m docs.subject show`, after the training of
recipes/dreambooth.yaml, the picture of the docs: what the model draws without and with what it learned.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]

from ldm.core import config, images
from ldm.core.params import PathsParams
from ldm.corpora import openmoji

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

DRAWING = "E000"
"""A goldfish."""
SUBJECT = "zorp fish"
"""Its caption in recipes/dreambooth.yaml: a word that no other has, and its class."""
PROMPTS = (SUBJECT, "fish", "tropical fish", "red apple", "cat face")
"""The subject, its class, a neighbour, and what should stay as it was."""
POSES = (
    *((0, 1.0, False), (0, 0.8, True), (20, 0.9, False), (-20, 0.9, False), (35, 0.8, False)),
    *((-35, 0.8, True), (10, 0.7, False), (-10, 1.0, True), (50, 0.75, False), (0, 0.6, False)),
)
"""Degrees, size and whether it is mirrored, of each picture."""
PICTURE = ROOT / "docs/images/dreambooth.png"
_SIZE_PX, _NUM_SHOWN = 256, 5
_BASE = -1.0
"""The weights of the repository hold the adapter: taking it away leaves the model that the training started from."""


def svg(drawing: str, degrees: int, size: float, mirrored: bool) -> str:
    """A drawing of OpenMoji, turned, scaled and perhaps mirrored around its centre."""
    side = -size if mirrored else size
    change = f"translate(36 36) rotate({degrees}) scale({side} {size}) translate(-36 -36)"
    opening, _, rest = drawing.partition(">")
    return f'{opening}><g transform="{change}">{rest.rpartition("</svg>")[0]}</g></svg>'


def draw(folder: Path) -> None:
    """Write the pictures, 0.png and so on, into a folder, which is made if it is not there."""
    text = openmoji.svg_of(DRAWING)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        for number, pose in enumerate(POSES):
            path = Path(scratch) / "drawing.svg"
            path.write_text(svg(text, *pose), encoding="utf-8")
            pixels = openmoji.render(str(path), _SIZE_PX, "#ffffff")
            (folder / f"{number}.png").write_bytes(images.encode_png(pixels))


def show(adapter: Path) -> None:
    """Draw each prompt without and with the adapter, from the same noises; nothing is chosen among results."""
    from ldm import Pipeline
    from ldm.tools.adapters import adapted

    cells: list[tuple[UInt8[Tensor, "3 h w"], str]] = []
    found = {which: adapted(Pipeline.load(ROOT), adapters) for which, adapters in _models(adapter).items()}
    for prompt in PROMPTS:
        for which, pipeline in found.items():
            cells += [(image, f"{prompt} ({which})") for image in pipeline([prompt] * _NUM_SHOWN)]
    images.grid([image for image, _ in cells], 2 * _NUM_SHOWN, [words for _, words in cells]).save(PICTURE)


def _models(adapter: Path) -> dict[str, dict[str | Path, float]]:
    return {"before": {adapter: _BASE}, "after": {}}


def main() -> None:
    """Do what the command line asks for."""
    paths = config.read(PathsParams, "paths", ROOT / config.PATHS)
    match sys.argv[1:]:
        case ["draw"]:
            draw(ROOT / paths.source / "subject")
        case ["show"]:
            show(ROOT / paths.unet / "adapter")
        case _:
            raise SystemExit("python -m docs.subject draw|show")


if __name__ == "__main__":
    main()
