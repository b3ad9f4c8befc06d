"""Stage `sample`: images of held-out and seen prompts, and of validation prompts at several guidance scales."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

import torch
from tqdm import tqdm

from ldm import config, samples, stage
from ldm.cache import TextEmbeddings
from ldm.params.machine import MachineParams
from ldm.params.paths import PathsParams
from ldm.params.sample import SampleParams
from ldm.pipeline import Generator
from ldm.shards import Shards


def pictures_of(
    generator: Generator, embeddings: TextEmbeddings, part: samples.PromptSet, rows: range, params: SampleParams
) -> torch.Tensor:
    """uint8 images [b, 3, h, w] of some prompts of a set, at most `batch_size` at a time."""
    params = params.model_copy(update={"guidance_scale": part.guidance_scale})
    batches: list[torch.Tensor] = []
    for start in range(rows.start, rows.stop, params.batch_size):
        prompts = part.prompts[start : min(start + params.batch_size, rows.stop)]
        context = embeddings.tokens(embeddings.rows([prompt.prompt for prompt in prompts]))
        batches.append(generator(context, [prompt.prompt_number for prompt in prompts], params))
    return torch.cat(batches)


def main() -> str:
    params = config.read(SampleParams, "sample")
    paths = config.read(PathsParams, "paths")
    accelerator = stage.start(params.precision, config.read(MachineParams, "machine"))
    embeddings = TextEmbeddings(Path(paths.embeddings))
    generator = Generator.load(Path(paths.unet), Path(paths.autoencoder), embeddings, accelerator.device)
    generator.check_latents(Path(paths.latents))
    captions = {split: Shards(Path(paths.captions) / split) for split in samples.SPLITS}
    sets = samples.choose(captions, params)
    generator.check_guidance([part.guidance_scale for part in sets])
    units = samples.units(sets, params.num_samples_per_shard)
    with stage.output(Path(paths.samples), accelerator) as folder:
        mine = stage.share_of(len(units), accelerator)
        for number in tqdm(mine, "sample", unit="shard", disable=not accelerator.is_main_process):
            part, rows = units[number]
            samples.write_unit(folder, part, rows, pictures_of(generator, embeddings, part, rows, params))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            inputs = {f"captions_{split}": shards.sha256 for split, shards in captions.items()}
            samples.merge(folder, sets, params, inputs | generator.inputs)
            samples.grid(folder, params).save(folder / "grid.png")
    counts = ", ".join(f"{len(part.prompts)} {part.name}" for part in sets)
    return f"sample: {counts} -> {paths.samples}"


if __name__ == "__main__":
    stage.run(main)
