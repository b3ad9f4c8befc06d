"""From measurements of images to the numbers and tables that people read.

Every accuracy is beside that of the real images of the same prompts and of their autoencoder round trips, and every
distance beside the same distance of those real images: a number without its scale says nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int8
from torch import Tensor

from ldm.core import artifact
from ldm.evaluation import metrics
from ldm.evaluation.measure import CHECKS, DECODED, GALLERY, NOT_STATED, REAL, REAL_SWEEP, REFERENCE, RIGHT, features_in
from ldm.evaluation.metrics import Estimate
from ldm.evaluation.params import EvaluateParams
from ldm.sampling.samples import SEEN, SETS, Samples

KIND = artifact.Kind("evaluation")
SUMMARY = (*(f"scene_accuracy_{name}" for name in SETS), "relation_accuracy", "retrieval_accuracy")
"""What one line says of an evaluation."""
Value = float | int | str
_ALL_COUNTS = "all"
_SCENES = ("scene", "scene_strict")
_LABELS = {"scene": "whole scene", "scene_strict": "whole scene, strict outlines", "outline": "strict outlines"}


@dataclass(frozen=True)
class Accuracy:
    """How often one attribute is right, over the images of a set whose caption states it; `num_objects` "all", or how
    many the caption tells of."""

    images: str
    attribute: str
    num_objects: str
    estimate: Estimate


@dataclass(frozen=True)
class Report:
    """What `evaluate` writes."""

    metrics: dict[str, Value]
    accuracies: list[Accuracy]
    sweep: list[dict[str, float]]
    sets: list[str]
    """Those of `SETS` that were sampled."""
    spaces: list[str]
    """Feature spaces of the distances."""

    def accuracy_rows(self) -> list[list[str]]:
        """`accuracies` as a table, header first."""
        header = ["images", "attribute", "num_objects", "accuracy", "low", "high", "num_images"]
        rows = [
            [a.images, a.attribute, a.num_objects, *(f"{x:.4f}" for x in (e.value, e.low, e.high)), str(e.count)]
            for a in self.accuracies
            for e in (a.estimate,)
        ]
        return [header, *rows]


def make(
    samples: Mapping[str, Samples],
    measured: Mapping[str, Mapping[str, Tensor]],
    spaces: Sequence[metrics.FeatureSpace],
    matching: Bool[Tensor, "prompts gallery"] | None,
    params: EvaluateParams,
) -> Report:
    """All numbers of an evaluation from the tensors of `Instruments.measure` by subject.

    matching: which images of the gallery have which searched prompt as a caption; None without a gallery.
    """
    sets = [name for name in SETS if name in samples]
    found: list[Accuracy] = []
    for prefix in ("", REAL, DECODED):
        for name in sets:
            found += accuracies(prefix + name, samples[name], measured[prefix + name]["checks"])
    numbers: dict[str, Value] = {**_headline(found, measured, sets)}
    for space in spaces:
        numbers |= _distances(measured, space.name, sets, params)
        numbers[f"{space.name}_extractor_sha256"] = space.sha256
    numbers |= _clip_scores(measured, sets)
    numbers |= _retrieval(measured, matching, params)
    numbers |= {f"num_samples_{name}": len(samples[name]) for name in sets}
    numbers["num_reference_images"] = len(measured[REFERENCE][features_in(spaces[0].name)])
    names = [space.name for space in spaces]
    return Report(numbers, found, _sweep(samples, measured, names), sets, names)


def accuracies(images: str, samples: Samples, checks: Int8[Tensor, "n checks"]) -> list[Accuracy]:
    """Every attribute that some caption states, over all images and by the number of objects told of."""
    counts = [0 if prompt.claim is None else int(prompt.claim["count"]) for prompt in samples.prompts]
    groups = {_ALL_COUNTS: torch.ones(len(counts), dtype=torch.bool)}
    groups |= {str(count): torch.tensor(counts) == count for count in sorted(set(counts))}
    return [
        Accuracy(images, attribute, group, estimate)
        for attribute, column in zip(CHECKS, checks.T, strict=True)
        for group, members in groups.items()
        if (estimate := _estimate(column[members])) is not None
    ]


def _estimate(codes: Int8[Tensor, "n"]) -> Estimate | None:
    """Share of right ones among those that are stated; None if none is."""
    stated = codes[codes != NOT_STATED]
    return metrics.share((stated == RIGHT).tolist()) if len(stated) else None


def _pooled(
    measured: Mapping[str, Mapping[str, Tensor]], names: Iterable[str], tensor: str, attribute: str
) -> Estimate | None:
    return _estimate(torch.cat([measured[name][tensor] for name in names])[:, CHECKS.index(attribute)])


def _headline(
    found: Sequence[Accuracy], measured: Mapping[str, Mapping[str, Tensor]], sets: Sequence[str]
) -> dict[str, Value]:
    numbers: dict[str, Value] = {}
    for a in found:
        if a.images in sets and a.num_objects == _ALL_COUNTS:
            numbers[f"{a.attribute}_accuracy_{a.images}"] = _short(a.estimate.value)
            if a.attribute in _SCENES:
                numbers |= _bounds(f"{a.attribute}_accuracy_{a.images}", a.estimate)
        elif a.images in sets and a.attribute == "scene":
            numbers[f"scene_accuracy_{a.images}_{a.num_objects}_objects"] = _short(a.estimate.value)
    real, decoded = ([prefix + name for name in sets] for prefix in (REAL, DECODED))
    pooled = {
        "relation_accuracy": _pooled(measured, sets, "checks", "relation"),
        "oracle_real": _pooled(measured, real, "checks", "scene"),
        "oracle_shuffled": _pooled(measured, real, "shuffled_checks", "scene"),
        "oracle_reconstructed": _pooled(measured, decoded, "checks", "scene"),
        "oracle_real_strict": _pooled(measured, real, "checks", "scene_strict"),
        "oracle_reconstructed_strict": _pooled(measured, decoded, "checks", "scene_strict"),
    }
    return numbers | {name: _short(estimate.value) for name, estimate in pooled.items() if estimate is not None}


def _distances(
    measured: Mapping[str, Mapping[str, Tensor]], space: str, sets: Sequence[str], params: EvaluateParams
) -> dict[str, Value]:
    """Frechet and kernel distance from the reference: of the samples, and (`_floor`) of the real images of the same
    prompts; and of round trips from the images they are of."""
    tensor = features_in(space)
    reference = measured[REFERENCE][tensor]
    numbers: dict[str, Value] = {}
    for name in sets:
        for subject, suffix in ((name, ""), (REAL + name, "_floor")):
            features = measured[subject][tensor]
            kernel, spread = metrics.kernel_distance(
                features, reference, params.num_kid_subsets, params.kid_subset_size, params.seed
            )
            numbers[f"frechet_{space}_{name}{suffix}"] = _short(metrics.frechet_distance(features, reference))
            numbers[f"kid_{space}_{name}{suffix}"] = _short(kernel)
            numbers[f"kid_{space}_{name}{suffix}_std"] = _short(spread)
    original, decoded = (torch.cat([measured[p + name][tensor] for name in sets]) for p in (REAL, DECODED))
    numbers[f"frechet_{space}_reconstructed"] = _short(metrics.frechet_distance(decoded, original))
    return numbers


def _clip_score(measured: Mapping[str, Tensor]) -> tuple[Estimate, Estimate]:
    return metrics.clip_score(measured[features_in(metrics.OWN_CLIP)], measured["clip_text"])


def _clip_scores(measured: Mapping[str, Mapping[str, Tensor]], sets: Sequence[str]) -> dict[str, Value]:
    numbers: dict[str, Value] = {}
    for name in (*sets, *(REAL + name for name in sets)):
        matched, margin = _clip_score(measured[name])
        numbers[f"own_clip_score_{name}"] = _short(matched.value)
        numbers[f"own_clip_score_margin_{name}"] = _short(margin.value)
        numbers |= _bounds(f"own_clip_score_margin_{name}", margin)
    return numbers


def _retrieval(
    measured: Mapping[str, Mapping[str, Tensor]],
    matching: Bool[Tensor, "prompts gallery"] | None,
    params: EvaluateParams,
) -> dict[str, Value]:
    """How often a sample of a seen prompt finds an image that has this prompt as a caption."""
    if matching is None:
        return {}
    tensor = features_in(metrics.OWN_CLIP)
    gallery = measured[GALLERY][tensor]
    queries = measured[SEEN][tensor][: len(matching)]
    hits = metrics.found_by_image(queries, gallery, matching, params.retrieval_k)
    estimate = metrics.share(hits.tolist())
    numbers: dict[str, Value] = {"retrieval_accuracy": _short(estimate.value)}
    numbers |= _bounds("retrieval_accuracy", estimate)
    return numbers | {"num_retrieval_prompts": estimate.count, "num_retrieval_images": len(gallery)}


def _sweep(
    samples: Mapping[str, Samples], measured: Mapping[str, Mapping[str, Tensor]], spaces: Sequence[str]
) -> list[dict[str, float]]:
    """One row per guidance scale, with the bounds of 95 % intervals (`_low`, `_high`) where there are some.

    An accuracy that no caption states is left out. `frechet_SPACE_floor` is the distance of the real images of the same
    prompts, as many and of the same scenes: only above it does a distance say something of the samples.
    """
    rows: list[dict[str, float]] = []
    for name, part in samples.items():
        if name in SETS:
            continue
        attributes = (*_SCENES, "relation")
        found = {f"{a}_accuracy": _pooled(measured, [name], "checks", a) for a in attributes}
        found["own_clip_score_margin"] = _clip_score(measured[name])[1]
        row = {"guidance_scale": part.guidance_scale}
        for key, estimate in found.items():
            if estimate is not None:
                row |= {key: _short(estimate.value), f"{key}_low": _short(estimate.low)}
                row[f"{key}_high"] = _short(estimate.high)
        for space in spaces:
            tensor = features_in(space)
            for subject, suffix in ((name, ""), (REAL_SWEEP, "_floor")):
                distance = metrics.frechet_distance(measured[subject][tensor], measured[REFERENCE][tensor])
                row[f"frechet_{space}{suffix}"] = _short(distance)
        rows.append(row)
    return rows


def table(report: Report) -> str:
    """The main numbers as Markdown."""
    by_place = {(a.images, a.attribute, a.num_objects): a.estimate for a in report.accuracies}
    kinds = dict.fromkeys((a.attribute, a.num_objects) for a in report.accuracies)
    shown = [kind for kind in kinds if kind[1] == _ALL_COUNTS or kind[0] == "scene"]
    columns = [(prefix, name) for name in report.sets for prefix in ("", REAL, DECODED)]
    header = [part for name in report.sets for part in (name.replace("_", " "), "real images", "round trips")]
    lines = [_row("", header), _row("---", ["---"] * len(header))]
    first = [(attribute, group) for attribute, group in shown if attribute in _SCENES]
    for attribute, group in [*first, *(kind for kind in shown if kind not in first)]:
        label = _LABELS.get(attribute, attribute)
        label += "" if group == _ALL_COUNTS else f", {group} object{'s' if group != '1' else ''}"
        estimates = [by_place.get((prefix + name, attribute, group)) for prefix, name in columns]
        shown_as = zip(columns, estimates, strict=True)
        lines.append(_row(label, [_percent(estimate, not prefix) for (prefix, _), estimate in shown_as]))
    numbers = report.metrics
    for space in report.spaces:
        for label, key in {"Frechet distance": f"frechet_{space}", "kernel distance": f"kid_{space}"}.items():
            pairs = [(f"{key}_{name}", f"{key}_{name}_floor") for name in report.sets]
            lines.append(_scores(f"{label} ({space.replace('_', ' ')})", pairs, numbers))
    margins = [(f"own_clip_score_margin_{name}", f"own_clip_score_margin_{REAL}{name}") for name in report.sets]
    lines.append(_scores("CLIP score (own clip), own minus other caption", margins, numbers))
    oracle = ("oracle_real", "oracle_real_strict", "oracle_shuffled")
    scales = (*oracle, "oracle_reconstructed", "oracle_reconstructed_strict", "retrieval_accuracy")
    notes = [f"{key} {numbers[key]:.4f}" for key in scales if key in numbers]
    counts = ", ".join(f"{numbers[f'num_samples_{name}']} {name.replace('_', '-')}" for name in report.sets)
    notes.append(f"{counts} prompts, {numbers['num_reference_images']} training images as reference")
    return "\n".join([*lines, "", "; ".join(notes), "", *_sweep_table(report)])


def _sweep_table(report: Report) -> list[str]:
    """The guidance sweep as Markdown: nothing without one."""
    if not report.sweep:
        return []
    shown = {_LABELS.get(name, name): f"{name}_accuracy" for name in (*_SCENES, "relation")}
    shown = {label: key for label, key in shown.items() if key in report.sweep[0]}
    keys = [f"frechet_{space}{suffix}" for space in report.spaces for suffix in ("", "_floor")]
    labels = [key.replace("frechet_", "Frechet distance, ").replace("_", " ") for key in keys]
    lines = [_row("guidance scale", [*shown, *labels]), _row("---", ["---"] * (len(shown) + len(keys)))]
    for row in report.sweep:
        cells = [_percent(Estimate(row[key], row[f"{key}_low"], row[f"{key}_high"], 0), True) for key in shown.values()]
        lines.append(_row(f"{row['guidance_scale']:g}", [*cells, *(f"{row[key]:.4g}" for key in keys)]))
    return [*lines, ""]


def _row(label: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([label, *cells])} |"


def _scores(label: str, keys: Iterable[tuple[str, str]], numbers: Mapping[str, Value]) -> str:
    """A row of numbers that samples and real images have, and round trips have not."""
    return _row(label, [cell for pair in keys for cell in (*(f"{numbers[key]:.4g}" for key in pair), "")])


def _percent(estimate: Estimate | None, with_interval: bool) -> str:
    if estimate is None:
        return ""
    interval = f" ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})" if with_interval else ""
    return f"{100 * estimate.value:.1f} %{interval}"


def _bounds(name: str, estimate: Estimate) -> dict[str, Value]:
    return {f"{name}_low": _short(estimate.low), f"{name}_high": _short(estimate.high)}


def _short(value: float) -> float:
    """Six digits: what is left of a number after sums in another order."""
    return float(f"{value:.6g}")
