"""Stage `evaluate`: what the samples are worth, beside what real images, shuffled captions and round trips score."""

import csv
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

from ldm import stage  # before torch, whose MKL reads once how it is to multiply

# isort: split

import torch

from ldm import artifact, attention, clip, config, evaluation, images, metrics, plots, ranks, report, samples
from ldm.captions import Captions
from ldm.corpora import SPLITS, shapes_extractor
from ldm.params.evaluate import EvaluateParams
from ldm.params.machine import MachineParams
from ldm.params.paths import PathsParams
from ldm.pipeline import load_autoencoder
from ldm.progress import each


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
    accelerator = stage.start("fp32", config.read(MachineParams, "machine"))
    device = accelerator.device
    model, of_clip = clip.load(Path(paths.clip))
    autoencoder, of_autoencoder = load_autoencoder(Path(paths.autoencoder), device)
    passport, sampled = samples.read(Path(paths.samples))
    artifact.check_input(Path(paths.samples), passport, "autoencoder", of_autoencoder.content_sha256)
    size_px = int(images.decode_png(sampled[samples.SEEN].png(0)).shape[0])
    shapes = autoencoder.attention_shapes(size_px // autoencoder.factor)
    attention.prove(device, shapes, "fp32", trains=False)
    own = metrics.clip_space(model.to(device), of_clip.content_sha256)
    spaces = feature_spaces(params, own, evaluation.has_claims(sampled), device)
    instruments = evaluation.Instruments(spaces, model, autoencoder, device)
    real = evaluation.RealImages(Path(paths.images), SPLITS)
    subjects = evaluation.subjects(sampled, real, params)
    units = evaluation.units(subjects, params.num_samples_per_unit)
    with stage.output(Path(paths.evaluation), accelerator) as folder:
        parts = folder / ".parts"
        mine = stage.share_of(len(units), accelerator)
        for number in each(mine, "evaluate", "unit", len(mine), is_shown=accelerator.is_main_process):
            subject, rows = units[number]
            evaluation.write_unit(parts, subject, rows, instruments.measure(subject, rows, params.batch_size))
        ranks.wait()
        summary = ""
        if accelerator.is_main_process:
            matching = None
            if not evaluation.has_claims(sampled):
                texts = {split: Captions(Path(paths.captions) / split).texts for split in ("train", "val")}
                matching = evaluation.matching(sampled, real, texts, params)
            result = report.make(sampled, evaluation.read_units(parts, subjects), spaces, matching, params)
            shutil.rmtree(parts)
            write(folder, result)
            inputs = {
                "samples": passport.content_sha256,
                "autoencoder": of_autoencoder.content_sha256,
                "clip": of_clip.content_sha256,
                **real.sha256,
            }
            artifact.write_passport(
                folder,
                "evaluation",
                params.model_dump(mode="json"),
                inputs,
                {"feature_spaces": [space.name for space in spaces]},
                artifact.sha256_file(folder / "metrics.json"),
            )
            evaluation.beside_real(sampled, real, params.num_pairs).save(folder / "beside_real.png")
            summary = ", ".join(f"{key} {result.metrics[key]}" for key in report.SUMMARY if key in result.metrics)
    return f"evaluate: {summary} -> {paths.evaluation}"


if __name__ == "__main__":
    stage.run(main)
