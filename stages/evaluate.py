"""Stage `evaluate`: metrics of the samples, beside those of real images, shuffled captions and round trips."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

from ldm.compute import devices, fingerprint, process, state
from ldm.core import artifact, config, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.core.shards import SPLITS
from ldm.evaluation import measure, metrics, mistakes, report, tables
from ldm.evaluation.params import EvaluateParams
from ldm.evaluation.real_images import RealImages
from ldm.precompute.work import keep_each
from ldm.sampling import samples
from ldm.text.model.captions import Captions


def main() -> str:
    params = config.read(EvaluateParams, "evaluate")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = devices.start(machine)
    device = accelerator.device
    learned_from = Path(paths.images) / "train", Path(paths.captions) / "train"
    instruments = measure.Instruments.load(params, Path(paths.clip), Path(paths.autoencoder), learned_from, device)
    passport, sampled = samples.read(Path(paths.samples))
    artifact.check_input(Path(paths.samples), passport, "autoencoder", instruments.sha256["autoencoder"])
    real = RealImages(Path(paths.images), SPLITS)
    instruments.prove_attention(real.sizes_px)
    work = measure.units(measure.subjects(sampled, real, params), params.num_samples_per_unit)
    inputs = {"samples": passport.content_sha256, **instruments.sha256, **real.sha256}
    made_by = fingerprint.of(__file__, params, {**inputs, "device": device.type})
    run = state.Run(workspace.runs(paths.runs), "evaluate", made_by, machine)

    def measured_unit(unit: tuple[measure.Subject, range]) -> measure.Measurement:
        return instruments.measure(*unit, params.batch_size)

    with run.opened(accelerator):
        keep_each(run, work, measured_unit, "evaluate", "unit", accelerator)
        with process.output(Path(paths.evaluation), accelerator) as folder:
            summary = ""
            if accelerator.is_main_process:
                measured, told = measure.gather(work, run.unit)
                texts = {split: Captions(Path(paths.captions) / split).texts for split in ("train", "val")}
                matching = measure.matching(sampled, real, texts, params.accuracy)
                result = report.build(sampled, measured, instruments.spaces, instruments.oracle, matching, params)
                tables.write(folder, result)
                worst = mistakes.worst(sampled, measured, told, result.spaces, instruments.oracle)
                mistakes.write(folder, worst, mistakes.confusion(told))
                mistakes.picture(worst, sampled, real).save(folder / mistakes.PICTURE)
                measure.beside_real(sampled, real, params.num_pairs).save(folder / "beside_real.png")
                facts = {"feature_spaces": result.spaces}
                sha256 = artifact.sha256_file(folder / "metrics.json")
                artifact.write_passport(folder, metrics.KIND, params.model_dump(mode="json"), inputs, facts, sha256)
                summary = result.summary()
        run.remove()
    return f"evaluate: {summary} -> {paths.evaluation}"


if __name__ == "__main__":
    stage.run(main)
