"""Stage `evaluate`: what the samples are worth, beside what real images, shuffled captions and round trips score."""

import csv
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the ldm beside this script, whatever is installed

import torch
from tqdm import tqdm

from ldm import artifact, clip, config, evaluation, metrics, plots, ranks, report, samples, stage
from ldm.params.evaluate import EvaluateParams
from ldm.params.machine import MachineParams
from ldm.params.paths import PathsParams
from ldm.pipeline import load_autoencoder


def feature_space(params: EvaluateParams, model: clip.Clip, sha256: str, device: torch.device) -> metrics.FeatureSpace:
    """The space that the params name."""
    if params.inception_weights is None:
        return metrics.clip_space(model, sha256)
    return metrics.inception_space(Path(params.inception_weights), device)


def write(folder: Path, result: report.Report, space: str) -> None:
    """Numbers as JSON for DVC, tables as CSV and Markdown, the sweep as a picture."""
    artifact.write_json(folder / "metrics.json", result.metrics)
    (folder / "table.md").write_text(report.table(result, space), encoding="utf-8")
    with (folder / "accuracies.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(result.accuracy_rows())
    plots.write_table(folder / "guidance_sweep.csv", result.sweep)
    plots.draw_curves({"val": folder / "guidance_sweep.csv"}, folder / "guidance_sweep.png", "guidance_scale")


def main() -> str:
    params = config.read(EvaluateParams, "evaluate")
    paths = config.read(PathsParams, "paths")
    accelerator = stage.start("fp32", config.read(MachineParams, "machine"))
    device = accelerator.device
    model, of_clip = clip.load(Path(paths.clip))
    autoencoder, of_autoencoder = load_autoencoder(Path(paths.autoencoder), device)
    passport, sampled = samples.read(Path(paths.samples))
    artifact.check_input(Path(paths.samples), passport, "autoencoder", of_autoencoder.content_sha256)
    space = feature_space(params, model.to(device), of_clip.content_sha256, device)
    instruments = evaluation.Instruments(space, model, autoencoder, device)
    real = evaluation.RealImages(Path(paths.images), samples.SPLITS)
    subjects = evaluation.subjects(sampled, real, params)
    units = evaluation.units(subjects, params.num_samples_per_unit)
    with stage.output(Path(paths.evaluation), accelerator) as folder:
        parts = folder / ".parts"
        mine = stage.share_of(len(units), accelerator)
        for number in tqdm(mine, "evaluate", unit="unit", disable=not accelerator.is_main_process):
            subject, rows = units[number]
            evaluation.write_unit(parts, subject, rows, instruments.measure(subject, rows, params.batch_size))
        ranks.wait()
        summary = ""
        if accelerator.is_main_process:
            result = report.make(sampled, evaluation.read_units(parts, subjects), space, params)
            shutil.rmtree(parts)
            write(folder, result, space.name)
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
                {"feature_space": space.name},
                artifact.sha256_file(folder / "metrics.json"),
            )
            evaluation.beside_real(sampled, real, params.num_pairs).save(folder / "beside_real.png")
            summary = ", ".join(f"{key} {result.metrics[key]}" for key in report.SUMMARY if key in result.metrics)
    return f"evaluate: {summary} -> {paths.evaluation}"


if __name__ == "__main__":
    stage.run(main)
