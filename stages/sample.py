"""Stage `sample`: images of held-out, unseen, reworded and seen prompts, and of others at several guidance scales."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from ldm.compute import devices, fingerprint, process, state
from ldm.core import config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.core.shards import SPLITS, Shards
from ldm.precompute.work import keep_each
from ldm.sampling import plan, samples
from ldm.sampling.generator import Generator
from ldm.sampling.params import SampleParams
from ldm.text.embedding.embeddings import TextEmbeddings
from ldm.text.model import encoders


def main() -> str:
    params = config.read(SampleParams, "sample")
    paths, machine = config.read(PathsParams, "paths"), config.read(MachineParams, "machine")
    accelerator = devices.start(machine)
    embeddings = TextEmbeddings(Path(paths.embeddings))
    device = accelerator.device
    encoder = embeddings.encoder(*encoders.load(Path(paths.clip)), device) if embeddings.is_online else None
    generator = Generator.load(Path(paths.unet), Path(paths.autoencoder), embeddings, device, text_encoder=encoder)
    generator.check_latents(Path(paths.latents))
    captions = {split: Shards(Path(paths.captions) / split) for split in SPLITS}
    sets = plan.choose(captions, params)
    for drawing in [drawing for part in sets for drawing in part.drawings(params.drawing)]:
        generator.prove_attention(drawing)
        generator.check_guidance(drawing)
        generator.check_drawing(drawing)
    models = generator.made_from(params.drawing)
    inputs = {f"captions_{split}": shards.sha256 for split, shards in captions.items()} | models
    made_by = fingerprint.of(__file__, params, {**inputs, "device": device.type})
    run = state.Run(workspace.runs(paths.runs), "sample", made_by, machine)
    work = {unit.key: unit for unit in plan.units(sets, params.batch_size)}

    def pictures_of(unit: plan.Unit) -> plan.Pictures:
        kept = run.unit(unit.key)
        return plan.pictures(kept.tensors, kept.values)

    with run.opened(accelerator):
        precision = devices.settle_in(run, params.drawing.precision, generator.unet, accelerator)
        params = params.model_copy(update={"drawing": params.drawing.model_copy(update={"precision": precision})})
        generator.speed_up(params.drawing, machine)
        keep_each(run, work, lambda unit: plan.draw(unit, generator, params.drawing), "sample", "batch", accelerator)
        with process.output(Path(paths.samples), accelerator) as folder:
            if accelerator.is_main_process:
                plan.write(folder, sets, pictures_of, params, inputs)
                plan.grid(folder, params).save(folder / "grid.png")
        run.remove()
    asked = {name: getattr(params, f"num_prompts_{name}") for name in samples.SETS}
    counts = ", ".join(
        f"{part.name} {len(part.prompts)} of {asked.get(part.name, params.sweep.num_prompts)}" for part in sets
    )
    return f"sample: {counts} prompts -> {paths.samples}"


if __name__ == "__main__":
    stage.run(main)
