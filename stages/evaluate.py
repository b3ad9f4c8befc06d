"""Stage `evaluate`: what the samples are worth, beside what real images, shuffled captions and round trips score."""

import csv
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm.core import stage

# isort: split

import torch

from ldm.autoencoder.model import network
from ldm.compute import attention, fingerprint, process, state
from ldm.core import artifact, config, images, workspace
from ldm.core.params import MachineParams, PathsParams
from ldm.core.shards import SPLITS
from ldm.evaluation import measure, metrics, report, shapes_extractor
from ldm.evaluation.params import EvaluateParams
from ldm.precompute.work import keep_each
from ldm.sampling import samples
from ldm.text.model import clip
from ldm.text.model.captions import Captions
from ldm.training import plots


def feature_spaces(
    params: EvaluateParams, own: metrics.FeatureSpace, is_shapes: bool, device: torch.device
) -> list[metrics.FeatureSpace]:
    """The run's own CLIP; the fixed extractor of the shapes corpus; Inception if the params name its weights."""
    spaces = [own, *([shapes_extractor.extractor(device)] if is_shapes else [])]
    if params.inception_weights is None:
        return spaces
    return [*spaces, metrics.inception_space(Path(params.inception_weights), device)]


def write(folder: Path, result: report.Report) -> None:
    """Numbers as JSON for DVC, tables as CSV and Markdown, the sweep as a picture."""
    artifact.write_json(folder / "metrics.json", result.metrics)
    (folder / "table.md").write_text(report.table(result), encoding="utf-8")
    with (folder / "accuracies.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(result.accuracy_rows())
    plots.write_table(folder / "guidance_sweep.csv", result.sweep)
    plots.draw_intervals(folder / "guidance_sweep.csv", folder / "guidance_sweep.png", "guidance_scale")


def main() -> str:
    params = config.read(EvaluateParams, "evaluate")
    paths = config.read(PathsParams, "paths")
    machine = config.read(MachineParams, "machine")
    accelerator = process.start("fp32", machine)
    device = accelerator.device
    model, of_clip = clip.load(Path(paths.clip))
    autoencoder, of_autoencoder = network.load(Path(paths.autoencoder), device)
    passport, sampled = samples.read(Path(paths.samples))
    artifact.check_input(Path(paths.samples), passport, "autoencoder", of_autoencoder.content_sha256)
    size_px = int(images.decode_png(sampled[samples.SEEN].png(0)).shape[0])
    shapes = autoencoder.attention_shapes(size_px // autoencoder.factor)
    attention.prove(device, shapes, "fp32", trains=False)
    own = metrics.clip_space(model.to(device), of_clip.content_sha256)
    spaces = feature_spaces(params, own, measure.has_claims(sampled), device)
    instruments = measure.Instruments(spaces, model, autoencoder, device)
    real = measure.RealImages(Path(paths.images), SPLITS)
    subjects = measure.subjects(sampled, real, params)
    work = measure.units(subjects, params.num_samples_per_unit)
    inputs = {
        "samples": passport.content_sha256,
        "autoencoder": of_autoencoder.content_sha256,
        "clip": of_clip.content_sha256,
        **real.sha256,
    }
    made_by = fingerprint.of(params, {**inputs, "device": device.type})
    run = state.Run(workspace.runs(paths.runs), "evaluate", made_by, machine)

    def compute(unit: tuple[measure.Subject, range]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return instruments.measure(*unit, params.batch_size), {}

    with run.opened(accelerator):
        keep_each(run, work, compute, "evaluate", "unit", accelerator)
        with process.output(Path(paths.evaluation), accelerator) as folder:
            summary = ""
            if accelerator.is_main_process:
                matching = None
                if not measure.has_claims(sampled):
                    texts = {split: Captions(Path(paths.captions) / split).texts for split in ("train", "val")}
                    matching = measure.matching(sampled, real, texts, params)
                measured = measure.gather(work, lambda key: run.unit(key).tensors)
                result = report.make(sampled, measured, spaces, matching, params)
                write(folder, result)
                facts = {"feature_spaces": [space.name for space in spaces]}
                sha256 = artifact.sha256_file(folder / "metrics.json")
                artifact.write_passport(folder, report.KIND, params.model_dump(mode="json"), inputs, facts, sha256)
                measure.beside_real(sampled, real, params.num_pairs).save(folder / "beside_real.png")
                summary = ", ".join(f"{key} {result.metrics[key]}" for key in report.SUMMARY if key in result.metrics)
        run.remove()
    return f"evaluate: {summary} -> {paths.evaluation}"


if __name__ == "__main__":
    stage.run(main)
