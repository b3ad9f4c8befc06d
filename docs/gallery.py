"""Bring pictures and numbers of the last run into docs/results.md and docs/images/; `--show` only prints them."""

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/results.md"

from docs import blocks
from ldm.core import config
from ldm.core.params import PathsParams
from ldm.corpora.params import PrepareParams

PICTURES = {
    "shapes": {
        "samples/grid.png": "Samples: two rows for prompts of compositions seen in training, two for others",
        "evaluation/beside_real.png": "Samples, each beside the real image of its prompt",
        "autoencoder_results/reconstructions.png": "Images beside their reconstructions",
        "evaluation/failures.png": "The worst samples, above what is wrong, each beside the real image of its prompt",
        "evaluation/guidance_sweep.png": "Guidance sweep on validation prompts",
        "unet_results/curves.png": "Training of the UNet",
    },
    "openmoji": {"evaluation/beside_real.png": "Samples, each beside the drawing of its name (OpenMoji, CC BY-SA 4.0)"},
}
"""By corpus, each of which has a block of the page."""


def numbers(folders: dict[str, Path]) -> str:
    """What the evaluation and the autoencoder's training found, as Markdown."""
    autoencoder = json.loads((folders["autoencoder_results"] / "metrics.json").read_text(encoding="utf-8"))
    table = (folders["evaluation"] / "table.md").read_text(encoding="utf-8").strip()
    return f"{table}\n\nAutoencoder: {autoencoder['psnr_db']:.2f} dB, SSIM {autoencoder['ssim']:.3f}\n"


def rewritten(page: str, kind: str, block: str) -> str:
    """The page with another block between the gallery markers of a corpus."""
    return blocks.rewritten(page, f"gallery {kind}", block)


def main() -> None:
    """Print, or copy the pictures and rewrite the corpus's block of the page."""
    paths = config.read(PathsParams, "paths", ROOT / config.PATHS).model_dump()
    kind = config.read(PrepareParams, "prepare", ROOT / config.PARAMS).corpus.kind
    folders = {name: ROOT / path for name, path in paths.items()}
    pictures = PICTURES.get(kind, PICTURES["shapes"])
    found = {folders[name.split("/")[0]] / name.split("/")[1]: words for name, words in pictures.items()}
    if "--show" in sys.argv[1:]:
        places = "\n".join(f"{words}: {path.relative_to(ROOT)}" for path, words in found.items())
        print(f"{numbers(folders)}\n{places}\n\nAll numbers: dvc metrics show; curves: dvc plots show")
        return
    (PAGE.parent / "images").mkdir(exist_ok=True)
    parts = [numbers(folders)]
    for path, words in found.items():
        picture = Path("images", f"{kind}_{path.parent.name}_{path.name}")
        shutil.copyfile(path, PAGE.parent / picture)
        parts.append(f"{words}:\n\n![{words}]({picture.as_posix()})\n")
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), kind, "\n".join(parts)), encoding="utf-8")


if __name__ == "__main__":
    main()
