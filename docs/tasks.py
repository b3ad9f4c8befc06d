"""Draw the picture of every task for docs/tasks.md, from the trained model: `python -m docs.tasks`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]

from ldm import Pipeline, randomness
from ldm.core import config, images
from ldm.core.params import PathsParams
from ldm.core.shards import Shards
from ldm.text.model.captions import Captions

PICTURE = ROOT / "docs/images/tasks.png"
PROMPT = "a red circle to the left of a blue star"
BESIDE = "a blue diamond to the left of a blue star"
_CELL_PX = 192
_SIGMA = 0.3

Cell = tuple[UInt8[Tensor, "3 h w"], str]


def examples(
    pipeline: Pipeline, given: UInt8[Tensor, "3 h w"], caption: str, last: UInt8[Tensor, "3 h w"]
) -> list[Cell]:
    """Each task on an image with its caption: what it was given, then what it made. Nothing is chosen among results."""
    size = given.shape[-1]
    mask = torch.zeros_like(given)
    mask[:, :, size // 2 :] = 255
    small = given.reshape(3, size // 2, 2, size // 2, 2).float().mean((2, 4)).round().to(torch.uint8)
    noise = torch.randn(given.shape, generator=randomness.generator(0, "docs", 0))
    noisy = (given + 255 * _SIGMA * noise).clamp(0, 255).round().to(torch.uint8)
    varied = pipeline.variations(given, [""] * 2)
    frames = pipeline.interpolate([""], images=given, last_images=last, num_frames=5)
    return [
        (given, caption),
        (pipeline.img2img(given, [PROMPT])[0], f"img2img: {PROMPT}"),
        (torch.where(mask > 0, 127, given), "inpaint: the grey half ..."),
        (pipeline.inpaint(given, mask, [BESIDE])[0], f"... {BESIDE}"),
        (pipeline.outpaint(given, [caption])[0], "outpaint: 96 px from 64"),
        (small, "upscale: 32 px ..."),
        (pipeline.upscale(small, [caption])[0], "... to 64"),
        (pipeline.alternate_lines(given, [caption])[0], "alternate-lines: every second row is drawn"),
        (noisy, f"denoise: noise of {_SIGMA} of the range ..."),
        (pipeline.denoise(noisy)[0], "... which it measures by itself"),
        (pipeline.invert(given)[0], "invert: to noise and back"),
        *((varied[i], f"variations, {i + 1} of 2") for i in range(2)),
        *((frames[i], f"interpolate to another image: {i} of 4 steps") for i in (2, 3, 4)),
    ]


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Save all cells at one size, in rows of eight."""
    factors = [_CELL_PX // part.shape[-1] for part, _ in cells]
    sized = [part.repeat_interleave(n, 1).repeat_interleave(n, 2) for (part, _), n in zip(cells, factors, strict=True)]
    images.grid(torch.stack(sized), 8, [words for _, words in cells]).save(path)


def main() -> None:
    """Take the first validation images whose captions say what is above and what is left, and draw all tasks."""
    paths = config.read(PathsParams, "paths", ROOT / config.PATHS)
    texts = [texts[0] for texts in Captions(ROOT / paths.captions / "val").texts]
    chosen = [next(i for i, text in enumerate(texts) if words in text) for words in (" left of ", " above ")]
    given, last = Shards(ROOT / paths.images / "val").images(chosen)
    draw(examples(Pipeline.load(ROOT), given, texts[chosen[0]], last), PICTURE)


if __name__ == "__main__":
    main()
