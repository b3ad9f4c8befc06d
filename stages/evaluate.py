"""Stage `evaluate`: what the samples are worth, beside what real images, shuffled captions and round trips score."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from ldm.autoencoder.model import network
from ldm.compute import attention, fingerprint, process, state
from ldm.core import artifact, config, images, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.core.shards import SPLITS
from ldm.evaluation import measure, report, spaces, tables
from ldm.evaluation.params import EvaluateParams, RetrievalParams
from ldm.oracles import kinds
from ldm.precompute.work import keep_each
from ldm.sampling import samples
from ldm.text.model import clip
from ldm.text.model.captions import Captions


def main() -> str:
    params = config.read(EvaluateParams, "evaluate")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = process.start("fp32", machine)
    device = accelerator.device
    model, clip_passport = clip.load(Path(paths.clip))
    autoencoder, autoencoder_passport = network.load(Path(paths.autoencoder), device)
    passport, sampled = samples.read(Path(paths.samples))
    artifact.check_input(Path(paths.samples), passport, "autoencoder", autoencoder_passport.content_sha256)
    size_px = int(images.decode_png(sampled[samples.SEEN].png(0)).shape[0])
    shapes = autoencoder.attention_shapes(size_px // autoencoder.factor)
    attention.prove(device, shapes, "fp32", trains=False)
    own = spaces.own_clip(model.to(device), clip_passport.content_sha256)
    compared_in = [own, *(spaces.build(space, device) for space in params.feature_spaces)]
    oracle = None if isinstance(params.accuracy, RetrievalParams) else kinds.build(params.accuracy)
    instruments = measure.Instruments(compared_in, oracle, model, autoencoder, device)
    real = measure.RealImages(Path(paths.images), SPLITS)
    work = measure.units(measure.subjects(sampled, real, params), params.num_samples_per_unit)
    inputs = {
        "samples": passport.content_sha256,
        "autoencoder": autoencoder_passport.content_sha256,
        "clip": clip_passport.content_sha256,
        **real.sha256,
    }
    made_by = fingerprint.of(__file__, params, {**inputs, "device": device.type})
    run = state.Run(workspace.runs(paths.runs), "evaluate", made_by, machine)
    with run.opened(accelerator):
        keep_each(
            run, work, lambda unit: (instruments.measure(*unit, params.batch_size), {}), "evaluate", "unit", accelerator
        )
        with process.output(Path(paths.evaluation), accelerator) as folder:
            summary = ""
            if accelerator.is_main_process:
                matching = None
                if isinstance(params.accuracy, RetrievalParams):
                    texts = {split: Captions(Path(paths.captions) / split).texts for split in ("train", "val")}
                    matching = measure.matching(sampled, real, texts, params.accuracy)
                measured = measure.gather(work, lambda key: run.unit(key).tensors)
                result = report.build(sampled, measured, compared_in, oracle, matching, params)
                tables.write(folder, result)
                facts = {"feature_spaces": [space.name for space in compared_in]}
                sha256 = artifact.sha256_file(folder / "metrics.json")
                artifact.write_passport(folder, report.KIND, params.model_dump(mode="json"), inputs, facts, sha256)
                measure.beside_real(sampled, real, params.num_pairs).save(folder / "beside_real.png")
                summary = result.summary()
        run.remove()
    return f"evaluate: {summary} -> {paths.evaluation}"


if __name__ == "__main__":
    stage.run(main)
