"""Stage `sample`: images of held-out and seen prompts, and of validation prompts at several guidance scales."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm import stage  # before torch, whose MKL reads once how it is to multiply

# isort: split

import torch

from ldm import config, fingerprint, ranks, samples, state, stopping, workspace
from ldm.cache import TextEmbeddings
from ldm.corpora import SPLITS
from ldm.errors import IntegrityError
from ldm.params.machine import MachineParams
from ldm.params.paths import PathsParams
from ldm.params.sample import SampleParams
from ldm.pipeline import Generator
from ldm.provenance import Origin
from ldm.shards import Shards


def pictures_of(
    generator: Generator, embeddings: TextEmbeddings, unit: samples.Unit, params: SampleParams
) -> samples.Pictures:
    """Images of a unit, computed at most `batch_size` at a time."""
    params = params.model_copy(update={"guidance_scale": unit.part.guidance_scale})
    batches, origins = list[torch.Tensor](), list[Origin]()
    for start in range(0, len(unit.prompts), params.batch_size):
        batch = unit.prompts[start : start + params.batch_size]
        prompts, numbers = [prompt.prompt for prompt in batch], [prompt.prompt_number for prompt in batch]
        origins += generator.origins(prompts, numbers, params)
        batches.append(generator(embeddings.tokens(embeddings.rows(prompts)), numbers, params))
    return torch.cat(batches), origins


def kept_pictures(run: state.Run, unit: samples.Unit) -> samples.Pictures | None:
    """Images of a unit that the run has kept."""
    kept = run.kept(unit.key)
    return None if kept is None else (kept.tensors["images"], [Origin(**origin) for origin in kept.values["origins"]])


def read_pictures(run: state.Run, unit: samples.Unit) -> samples.Pictures:
    """The same. IntegrityError: it does not verify."""
    pictures = kept_pictures(run, unit)
    if pictures is None:
        where, fix = f"{run.directory}: {unit.key}", "run it again: only what is missing is computed"
        raise IntegrityError(where, "gone or damaged since it was written", "images of a unit", fix)
    return pictures


def main() -> str:
    params = config.read(SampleParams, "sample")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = stage.start(params.precision, machine)
    embeddings = TextEmbeddings(Path(paths.embeddings))
    generator = Generator.load(Path(paths.unet), Path(paths.autoencoder), embeddings, accelerator.device)
    generator.check_latents(Path(paths.latents))
    generator.prove_attention(params.precision)
    captions = {split: Shards(Path(paths.captions) / split) for split in SPLITS}
    sets = samples.choose(captions, params)
    generator.check_guidance([part.guidance_scale for part in sets])
    inputs = {f"captions_{split}": shards.sha256 for split, shards in captions.items()} | generator.inputs
    made_by = fingerprint.of(params, {**inputs, "device": accelerator.device.type})
    run = state.Run(workspace.runs(paths.runs), "sample", made_by, machine)
    with run.opened(accelerator):
        work = samples.units(sets, params.num_samples_per_shard)
        for unit in stopping.units(work, "sample", "shard", accelerator):
            if kept_pictures(run, unit) is None:
                pictures, origins = pictures_of(generator, embeddings, unit, params)
                run.keep(unit.key, {"images": pictures}, {"origins": [origin.model_dump() for origin in origins]})
        ranks.wait()
        with stage.output(Path(paths.samples), accelerator) as folder:
            if accelerator.is_main_process:
                samples.write(folder, sets, partial(read_pictures, run), params, inputs)
                samples.grid(folder, params).save(folder / "grid.png")
        run.remove()
    asked = {name: getattr(params, f"num_prompts_{name}") for name in samples.SETS}
    counts = ", ".join(
        f"{part.name} {len(part.prompts)} of {asked.get(part.name, params.sweep.num_prompts)}" for part in sets
    )
    return f"sample: {counts} prompts -> {paths.samples}"


if __name__ == "__main__":
    stage.run(main)
