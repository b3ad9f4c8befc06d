"""Write the numbers of an evaluation to files for people and for DVC."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ldm.core import artifact
from ldm.evaluation import guidance, spaces
from ldm.evaluation.measure import DECODED, REAL
from ldm.evaluation.metrics import Estimate
from ldm.evaluation.report import ALL, CONTROL, NUM_RETRIEVAL, RETRIEVAL, Report
from ldm.evaluation.spaces import CLIP_SCORE, CMMD, OWN_CLIP
from ldm.oracles.oracle import Oracle
from ldm.sampling.samples import SEEN
from ldm.training import plots

SCORES = "scores.csv"
_SCORE_COLUMNS = ["set", "score", "images", "value", "low", "high", "num_images"]


def write(folder: Path, report: Report) -> None:
    """Write the numbers as JSON for DVC, tables as Markdown and CSV, and the guidance sweep as CSV and as a picture."""
    artifact.write_json(folder / "metrics.json", report.metrics)
    (folder / "table.md").write_text(main_table(report), encoding="utf-8")
    if report.oracle is not None:
        plots.write_rows(folder / "accuracies.csv", accuracy_rows(report, report.oracle))
    plots.write_rows(folder / SCORES, [_SCORE_COLUMNS, *score_rows(report)])
    sweep = guidance.lines(report.sweep, report.oracle)
    guidance.write(folder / guidance.TABLE, sweep)
    plots.draw(guidance.panels(sweep), guidance.note(sweep), folder / "guidance_sweep.png")


def score_rows(report: Report) -> Iterator[list[str]]:
    """Every share of samples that are right, in words, beside those of real images and round trips: accuracies of whole
    sets, headlines first, or retrieval; nothing where nothing says what is right."""
    oracle = report.oracle
    if oracle is not None:
        whole = [accuracy for accuracy in report.accuracies if accuracy.group == ALL]
        for name in report.sets:
            for prefix, images in (("", "samples"), (REAL, "real images"), (DECODED, "round trips")):
                found = [accuracy for accuracy in whole if accuracy.images == prefix + name]
                for accuracy in sorted(found, key=lambda accuracy: accuracy.attribute not in oracle.headlines):
                    yield _score_row(name, oracle.label(accuracy.attribute), images, accuracy.estimate)
    if RETRIEVAL in report.metrics:
        value, low, high, count = (
            float(report.metrics[key]) for key in (RETRIEVAL, f"{RETRIEVAL}_low", f"{RETRIEVAL}_high", NUM_RETRIEVAL)
        )
        yield _score_row(SEEN, "retrieval of the own caption", "samples", Estimate(value, low, high, int(count)))


def _score_row(name: str, score: str, images: str, estimate: Estimate) -> list[str]:
    numbers = [f"{number:.4f}" for number in (estimate.value, estimate.low, estimate.high)]
    return [name.replace("_", " "), score, images, *numbers, str(estimate.count)]


def accuracy_rows(report: Report, oracle: Oracle) -> list[list[str]]:
    """Rows of all accuracies with their intervals, header first."""
    group = f"num_{oracle.counted}s" if oracle.counted else "group"
    rows = [["images", "attribute", group, "accuracy", "low", "high", "num_images"]]
    for accuracy in report.accuracies:
        estimate = accuracy.estimate
        numbers = [f"{number:.4f}" for number in (estimate.value, estimate.low, estimate.high)]
        rows.append([accuracy.images, accuracy.attribute, accuracy.group, *numbers, str(estimate.count)])
    return rows


def main_table(report: Report) -> str:
    """The main numbers as Markdown: a table with three columns per set, a line of controls, and the guidance sweep."""
    header = [cell for name in report.sets for cell in (name.replace("_", " "), "real images", "round trips")]
    lines = [_row("", header), _row("---", ["---"] * len(header))]
    if report.oracle is not None:
        lines += _accuracy_lines(report, report.oracle)
    for space in report.spaces:
        for metric in spaces.DISTANCES:
            keys = [(f"{metric}_{space}_{name}", f"{metric}_{space}_{name}_floor") for name in report.sets]
            lines.append(_number_line(spaces.label(metric, space), keys, report))
    if f"cmmd_{report.sets[0]}" in report.metrics:
        lines.append(_number_line(CMMD, [(f"cmmd_{name}", f"cmmd_{name}_floor") for name in report.sets], report))
    if OWN_CLIP in report.spaces:
        keys = [(f"own_clip_score_margin_{name}", f"own_clip_score_margin_{REAL}{name}") for name in report.sets]
        lines.append(_number_line(CLIP_SCORE, keys, report))
    return "\n".join([*lines, "", "; ".join(_notes(report)), "", *_sweep_lines(report)])


def _accuracy_lines(report: Report, oracle: Oracle) -> list[str]:
    """A line for every attribute, and for every group of the main attribute. Per set: samples with intervals, then real
    images and round trips."""
    estimates: dict[tuple[str, str], dict[str, Estimate]] = {}
    for accuracy in report.accuracies:
        if accuracy.group == ALL or accuracy.attribute == oracle.main:
            by_images = estimates.setdefault((accuracy.attribute, accuracy.group), {})
            by_images[accuracy.images] = accuracy.estimate
    lines: list[str] = []
    # The sort is stable: headlines move to the front, and the order is otherwise unchanged.
    for attribute, group in sorted(estimates, key=lambda line: line[0] not in oracle.headlines):
        by_images = estimates[attribute, group]
        cells: list[str] = []
        for name in report.sets:
            cells.append(_percent(by_images.get(name), with_interval=True))
            cells += [_percent(by_images.get(prefix + name), with_interval=False) for prefix in (REAL, DECODED)]
        lines.append(_row(oracle.label(attribute) + _group_label(group, oracle), cells))
    return lines


def _group_label(group: str, oracle: Oracle) -> str:
    if group == ALL:
        return ""
    return f", {group} {oracle.counted}{'' if group == '1' else 's'}"


def _number_line(label: str, keys: Iterable[tuple[str, str]], report: Report) -> str:
    """A line of numbers for samples and real images; the cells of round trips are empty."""
    cells: list[str] = []
    for of_samples, of_real_images in keys:
        cells += [f"{report.metrics[of_samples]:.4g}", f"{report.metrics[of_real_images]:.4g}", ""]
    return _row(label, cells)


def _notes(report: Report) -> list[str]:
    """Accuracies that do not belong to one set, and the numbers of images."""
    pooled = [name for name in report.metrics if name.startswith(CONTROL) or name == RETRIEVAL]
    counts = [f"{report.metrics[f'num_samples_{name}']} {name.replace('_', '-')}" for name in report.sets]
    reference = f"{report.metrics['num_reference_images']} training images as reference"
    return [*(f"{name} {report.metrics[name]:.4f}" for name in pooled), f"{', '.join(counts)} prompts, {reference}"]


def _sweep_lines(report: Report) -> list[str]:
    """The guidance sweep as a Markdown table; no lines without a sweep."""
    if not report.sweep:
        return []
    accuracies: dict[str, str] = {}  # label -> column
    if report.oracle is not None:
        for attribute in (*report.oracle.headlines, *report.oracle.highlights):
            if f"{attribute}_accuracy" in report.sweep[0]:
                accuracies[report.oracle.label(attribute)] = f"{attribute}_accuracy"
    distances: dict[str, str] = {}
    for space in report.spaces:
        for suffix in ("", "_floor"):
            distances[f"Frechet distance, {space}{suffix}".replace("_", " ")] = f"frechet_{space}{suffix}"
    header = [*accuracies, *distances]
    lines = [_row("guidance scale", header), _row("---", ["---"] * len(header))]
    for row in report.sweep:
        estimates = [Estimate(row[key], row[f"{key}_low"], row[f"{key}_high"], 0) for key in accuracies.values()]
        cells = [_percent(estimate, with_interval=True) for estimate in estimates]
        cells += [f"{row[key]:.4g}" for key in distances.values()]
        lines.append(_row(f"{row['guidance_scale']:g}", cells))
    return [*lines, ""]


def _row(label: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([label, *cells])} |"


def _percent(estimate: Estimate | None, with_interval: bool) -> str:
    if estimate is None:
        return ""
    interval = f" ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})" if with_interval else ""
    return f"{100 * estimate.value:.1f} %{interval}"
