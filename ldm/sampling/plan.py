"""Which prompts are sampled, in which units of work, and how the images of all units become one folder of samples."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm import randomness
from ldm.core import artifact, images, shards
from ldm.core.errors import ConfigError
from ldm.core.params import Size
from ldm.sampling.origin import Origin
from ldm.sampling.params import DrawingParams, SampleParams
from ldm.sampling.samples import HELD_OUT, KIND, REWORDED, SEEN, SETS, UNSEEN, Prompt, shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.sampling.generator import Generator

Pictures = tuple[UInt8[Tensor, "b 3 h w"], Sequence[Origin]]
"""Images, and what each was made from."""
_SWEEP = "sweep"


@dataclass(frozen=True)
class PromptSet:
    """Prompts that are sampled at one guidance scale."""

    name: str
    guidance_scale: float
    prompts: list[Prompt]
    sizes_px: list[Size | None]
    """Height and width of each prompt's own image, in a corpus of several sizes; prompts of one size are neighbours."""

    def drawing(self, common: DrawingParams, size_px: Size | None) -> DrawingParams:
        """The settings of its images: those of all sets, with its own scale, and with the size of a prompt's own image
        unless they name one."""
        own = {"guidance_scale": self.guidance_scale, "size_px": common.size_px or size_px}
        return common.model_copy(update=own)

    def drawings(self, common: DrawingParams) -> list[DrawingParams]:
        """The settings of its images, once for each size."""
        return [self.drawing(common, size_px) for size_px in dict.fromkeys(self.sizes_px)]


@dataclass(frozen=True)
class Unit:
    """Prompts of one set, and of one size, that are sampled together."""

    part: PromptSet
    rows: range

    @property
    def key(self) -> str:
        """Its name among the units of a run."""
        return f"{self.part.name}-{self.rows.start:08d}"

    @property
    def size_px(self) -> Size | None:
        """Height and width of its prompts' own images."""
        return self.part.sizes_px[self.rows.start]

    @property
    def prompts(self) -> list[Prompt]:
        """Its prompts."""
        return self.part.prompts[self.rows.start : self.rows.stop]


def choose(captions: Mapping[str, shards.Shards], params: SampleParams) -> list[PromptSet]:
    """The sets of `SETS` and one per scale of the sweep, whose prompts have the same numbers at every scale.

    captions: shards of all splits. A prompt is the first caption of a sample. Samples are chosen in an order scattered
    over their split, and none is chosen twice. The sweep is drawn from the unseen compositions. For a corpus that keeps
    none back, the sweep and `held_out` are drawn from val, and `unseen` is left out; so is `reworded` for one without
    captions in other forms, and a set of no prompts. Sets
    that ask for more than a split has share it in proportion; of train, half are left, since samples are compared with
    training images that gave no prompt. ConfigError: a set would have one prompt, too few to compare.
    """
    unseen = UNSEEN if len(captions[UNSEEN]) else "val"
    wanted = [
        (HELD_OUT, HELD_OUT if len(captions[HELD_OUT]) else "val", params.num_prompts_held_out),
        (UNSEEN, UNSEEN, params.num_prompts_unseen if len(captions[UNSEEN]) else 0),
        (SEEN, params.seen_split, params.num_prompts_seen),
        (REWORDED, REWORDED, params.num_prompts_reworded if len(captions[REWORDED]) else 0),
        (_SWEEP, unseen, params.sweep.num_prompts if params.sweep.guidance_scales else 0),
    ]
    asked: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    prompts: dict[str, tuple[list[Prompt], list[Size | None]]] = {}
    for _, split, count in wanted:
        asked[split] += count
    for name, split, count in wanted:
        # In proportion to what the sets ask of this split, if it has too few samples for all of them.
        available = len(captions[split]) // (2 if split == "train" else 1)
        share = min(count, count * available // max(asked[split], 1))
        if count and share < 2:
            found = f"{asked[split]} prompts asked of {split}, which gives {available} at most: {share} for {name}"
            fix = "change the numbers of prompts, or give the split more samples"
            raise ConfigError("params.yaml: sample", found, "at least two for each set", fix)
        places = range(taken[split], taken[split] + share)
        prompts[name] = _prompts_at(captions[split], split, places, taken.total()) if places else ([], [])
        taken[split] += share
    sets = [PromptSet(name, params.drawing.guidance_scale, *prompts[name]) for name in SETS if prompts[name][0]]
    return sets + [PromptSet(f"{_SWEEP}_{scale:g}", scale, *prompts[_SWEEP]) for scale in params.sweep.guidance_scales]


def _prompts_at(
    captions: shards.Shards, split: str, places: range, first_number: int
) -> tuple[list[Prompt], list[Size | None]]:
    """The prompts at these places of the scattered order of a split, numbered from `first_number` on, and the sizes of
    their own images. They are in the order of the sizes, and within a size as in the scattered order."""
    # The choice does not depend on the seed of the noise: two seeds are compared on the same prompts.
    positions = np.array(places, dtype=np.int64)
    chosen = randomness.order(positions, len(captions), randomness.key(0, "prompts", split))
    buckets = captions.buckets.of(chosen)
    prompts: list[Prompt] = []
    for number, sample in enumerate(chosen[buckets.argsort(kind="stable")].tolist(), first_number):
        record = json.loads(captions[sample]["json"])
        key = captions.keys[sample]
        prompts.append(Prompt(record["captions"][0], record["claims"][0], number, split, key, sample))
    return prompts, [captions.buckets.sizes_px[bucket] for bucket in sorted(buckets.tolist())]


def units(sets: Sequence[PromptSet], size: int) -> list[Unit]:
    """Divide the sets into batches of at most `size` prompts whose images have one size. The last bits of an image
    depend on its batch, so a batch does not depend on how images are stored and shown."""
    return [
        Unit(part, range(start, min(start + size, first + count)))
        for part in sets
        for first, count in _runs(part.sizes_px)
        for start in range(first, first + count, size)
    ]


def _runs(values: Sequence[Size | None]) -> list[tuple[int, int]]:
    """Place and length of every run of equal values."""
    counts = Counter(values)
    return [(values.index(value), counts[value]) for value in counts]


@torch.no_grad()
def draw(unit: Unit, generator: "Generator", drawing: DrawingParams) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Images of a unit, as one batch at the guidance scale of its set, and their origins, as `pictures` reads them."""
    drawing = unit.part.drawing(drawing, unit.size_px)
    prompts, numbers = [prompt.prompt for prompt in unit.prompts], [prompt.prompt_number for prompt in unit.prompts]
    pixels = generator(generator.condition(prompts), numbers, drawing)
    origins = generator.origins(prompts, numbers, drawing)
    return {"images": pixels}, {"origins": [origin.model_dump() for origin in origins]}


def pictures(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Pictures:
    """The images and origins that `draw` returned."""
    return tensors["images"], [Origin(**origin) for origin in values["origins"]]


def write(
    folder: Path,
    sets: Sequence[PromptSet],
    pictures_of: Callable[[Unit], Pictures],
    params: SampleParams,
    inputs: Mapping[str, str],
) -> None:
    """Write the images of all units as shards, each PNG with its origin, and the passport. Called by one process."""
    facts: dict[str, Any] = {}
    for part in sets:
        batches = units([part], params.batch_size)
        samples = (sample for unit in batches for sample in _samples(unit, *pictures_of(unit)))
        shards.write(folder / part.name, samples, params.num_samples_per_shard)
        sha256 = shards.Shards(folder / part.name).sha256
        facts[part.name] = {"sha256": sha256, "guidance_scale": part.guidance_scale}
    sha256 = artifact.sha256_json({name: fact["sha256"] for name, fact in facts.items()})
    artifact.write_passport(folder, KIND, params.model_dump(mode="json"), inputs, {"sets": facts}, sha256)


def grid(folder: Path, params: SampleParams) -> "Image":
    """Rows of seen prompts, then of held-out ones (or of unseen ones), then of reworded ones, with the prompts as
    captions."""
    cells: list[bytes] = []
    captions: list[str] = []
    for name, title in shown(path.name for path in folder.iterdir()).items():
        samples = shards.Shards(folder / name)
        count = min(len(samples), params.num_grid_rows * params.num_grid_columns)
        whole_rows = count - count % params.num_grid_columns or count
        cells += [samples[i]["png"] for i in range(whole_rows)]
        captions += [f"{title}: {json.loads(samples[i]['json'])['prompt']}" for i in range(whole_rows)]
    return images.grid(images.planes(cells), params.num_grid_columns, captions)


def _samples(
    unit: Unit, pictures: UInt8[Tensor, "b 3 h w"], origins: Sequence[Origin]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    arrays = pictures.permute(0, 2, 3, 1).contiguous().numpy()
    for prompt, origin, array in zip(unit.prompts, origins, arrays, strict=True):
        yield f"{prompt.prompt_number:08d}", {"png": origin.png(array), "json": _json(prompt)}


def _json(prompt: Prompt) -> bytes:
    return json.dumps(asdict(prompt), sort_keys=True, ensure_ascii=False).encode()
