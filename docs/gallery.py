"""Bring pictures and numbers of the last run into README.md and docs/images/; `--where` only says where they lie."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm import config  # noqa: E402
from ldm.params.paths import PathsParams  # noqa: E402

PICTURES = {
    "evaluation/grid.png": "Samples for prompts whose composition training never saw",
    "autoencoder_results/reconstructions.png": "Images and their reconstructions",
    "unet_results/curves.png": "Training of the UNet",
}
NUMBERS = {
    "evaluation.scene_accuracy_held_out": "whole scene as prompted, held-out compositions",
    "evaluation.scene_accuracy_seen": "whole scene as prompted, seen compositions",
    "evaluation.relation_accuracy": "relation of two objects",
    "evaluation.oracle_real": "the same measure on real images",
    "evaluation.oracle_reconstructed": "on real images through the autoencoder (the ceiling)",
    "evaluation.oracle_shuffled": "on real images with shuffled captions (the floor)",
    "autoencoder_results.psnr_db": "reconstruction, PSNR in dB",
}


def main() -> None:
    """Copy pictures, rewrite what stands between the gallery markers of the README."""
    paths = config.read(PathsParams, "paths", ROOT / "params.yaml").model_dump()
    found = {name: ROOT / paths[name.split("/")[0]] / name.split("/")[1] for name in PICTURES}
    if "--where" in sys.argv[1:]:
        print("\n".join(f"{PICTURES[name]}: {path.relative_to(ROOT)}" for name, path in found.items()))
        return
    blocks = [f"| | |\n| --- | --- |\n{''.join(_row(paths, name, words) for name, words in NUMBERS.items())}"]
    for name, path in found.items():
        picture = Path("docs/images", name.replace("/", "_"))
        shutil.copyfile(path, ROOT / picture)
        blocks.append(f"{PICTURES[name]}:\n\n![{PICTURES[name]}]({picture.as_posix()})\n")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition("<!-- gallery -->\n")
    _, _, after = rest.partition("<!-- /gallery -->")
    text = "\n".join(blocks)
    (ROOT / "README.md").write_text(f"{before}<!-- gallery -->\n{text}<!-- /gallery -->{after}", encoding="utf-8")


def _row(paths: dict[str, str], name: str, words: str) -> str:
    folder, metric = name.split(".")
    metrics: dict[str, Any] = json.loads((ROOT / paths[folder] / "metrics.json").read_text(encoding="utf-8"))
    return f"| {words} | {metrics[metric]:.3f} |\n"


if __name__ == "__main__":
    main()
