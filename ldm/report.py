"""From measurements of images to the numbers and tables that people read.

Every accuracy stands beside that of the real images of the same prompts and of their autoencoder round trips, and every
distance beside the same distance of those real images: a number without its scale says nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int8
from torch import Tensor

from ldm import metrics
from ldm.evaluation import CHECKS, DECODED, GALLERY, NOT_STATED, REAL, REFERENCE, RIGHT
from ldm.metrics import Estimate
from ldm.params.evaluate import EvaluateParams
from ldm.samples import HELD_OUT, SEEN, Samples

SETS = (HELD_OUT, SEEN)
SUMMARY = (f"scene_accuracy_{HELD_OUT}", f"scene_accuracy_{SEEN}", "relation_accuracy", "retrieval_accuracy")
"""What one line says of an evaluation."""
Value = float | int | str
_ALL_COUNTS = "all"


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
    space: metrics.FeatureSpace,
    params: EvaluateParams,
) -> Report:
    """All numbers of an evaluation from the tensors of `Instruments.measure` by subject."""
    found: list[Accuracy] = []
    for prefix in ("", REAL, DECODED):
        for name in SETS:
            found += accuracies(prefix + name, samples[name], measured[prefix + name]["checks"])
    numbers: dict[str, Value] = {**_headline(found, measured)}
    numbers |= _distances(measured, space.name, params)
    numbers |= _clip_scores(measured)
    numbers |= _retrieval(measured, params)
    numbers |= {f"num_samples_{name}": len(samples[name]) for name in SETS}
    numbers["num_reference_images"] = len(measured[REFERENCE]["features"])
    numbers[f"{space.name}_extractor_sha256"] = space.sha256
    return Report(numbers, found, _sweep(samples, measured))


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


def _headline(found: Sequence[Accuracy], measured: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Value]:
    numbers: dict[str, Value] = {}
    for a in found:
        if a.images in SETS and a.num_objects == _ALL_COUNTS:
            numbers[f"{a.attribute}_accuracy_{a.images}"] = _short(a.estimate.value)
            if a.attribute == "scene":
                numbers |= _bounds(f"scene_accuracy_{a.images}", a.estimate)
        elif a.images in SETS and a.attribute == "scene":
            numbers[f"scene_accuracy_{a.images}_{a.num_objects}_objects"] = _short(a.estimate.value)
    real, decoded = ([prefix + name for name in SETS] for prefix in (REAL, DECODED))
    pooled = {
        "relation_accuracy": _pooled(measured, SETS, "checks", "relation"),
        "oracle_real": _pooled(measured, real, "checks", "scene"),
        "oracle_shuffled": _pooled(measured, real, "shuffled_checks", "scene"),
        "oracle_reconstructed": _pooled(measured, decoded, "checks", "scene"),
    }
    return numbers | {name: _short(estimate.value) for name, estimate in pooled.items() if estimate is not None}


def _distances(measured: Mapping[str, Mapping[str, Tensor]], space: str, params: EvaluateParams) -> dict[str, Value]:
    """Frechet and kernel distance from the reference: of the samples, and (`_floor`) of the real images of the same
    prompts; and of round trips from the images they are of."""
    reference = measured[REFERENCE]["features"]
    numbers: dict[str, Value] = {}
    for name in SETS:
        for subject, suffix in ((name, ""), (REAL + name, "_floor")):
            features = measured[subject]["features"]
            kernel, spread = metrics.kernel_distance(
                features, reference, params.num_kid_subsets, params.kid_subset_size, params.seed
            )
            numbers[f"frechet_{space}_{name}{suffix}"] = _short(metrics.frechet_distance(features, reference))
            numbers[f"kid_{space}_{name}{suffix}"] = _short(kernel)
            numbers[f"kid_{space}_{name}{suffix}_std"] = _short(spread)
    original, decoded = (torch.cat([measured[p + name]["features"] for name in SETS]) for p in (REAL, DECODED))
    numbers[f"frechet_{space}_reconstructed"] = _short(metrics.frechet_distance(decoded, original))
    return numbers


def _clip_scores(measured: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Value]:
    numbers: dict[str, Value] = {}
    for name in (*SETS, *(REAL + name for name in SETS)):
        matched, margin = metrics.clip_score(measured[name]["clip_image"], measured[name]["clip_text"])
        numbers[f"clip_score_{name}"] = _short(matched.value)
        numbers[f"clip_score_margin_{name}"] = _short(margin.value)
        numbers |= _bounds(f"clip_score_margin_{name}", margin)
    return numbers


def _retrieval(measured: Mapping[str, Mapping[str, Tensor]], params: EvaluateParams) -> dict[str, Value]:
    """How often a sample of a seen prompt finds that prompt's image, which has the prompt's place in the gallery."""
    if GALLERY not in measured:
        return {}
    gallery = measured[GALLERY]["clip_image"]
    queries = measured[SEEN]["clip_image"][: params.num_retrieval_prompts]
    hits = metrics.found_by_image(queries, gallery, range(len(queries)), params.retrieval_k)
    estimate = metrics.share(hits.tolist())
    numbers: dict[str, Value] = {"retrieval_accuracy": _short(estimate.value)}
    numbers |= _bounds("retrieval_accuracy", estimate)
    return numbers | {"num_retrieval_prompts": estimate.count, "num_retrieval_images": len(gallery)}


def _sweep(samples: Mapping[str, Samples], measured: Mapping[str, Mapping[str, Tensor]]) -> list[dict[str, float]]:
    """One row per guidance scale; an accuracy that no caption states is left out."""
    rows: list[dict[str, float]] = []
    for name, part in samples.items():
        if name in SETS:
            continue
        shares = {f"{a}_accuracy": _pooled(measured, [name], "checks", a) for a in ("scene", "relation")}
        row = {"guidance_scale": part.guidance_scale}
        row |= {key: _short(estimate.value) for key, estimate in shares.items() if estimate is not None}
        row["frechet"] = _short(metrics.frechet_distance(measured[name]["features"], measured[REFERENCE]["features"]))
        row["clip_score_margin"] = _short(
            metrics.clip_score(measured[name]["clip_image"], measured[name]["clip_text"])[1].value
        )
        rows.append(row)
    return rows


def table(report: Report, space: str) -> str:
    """The main numbers as Markdown."""
    by_place = {(a.images, a.attribute, a.num_objects): a.estimate for a in report.accuracies}
    kinds = dict.fromkeys((a.attribute, a.num_objects) for a in report.accuracies)
    shown = [kind for kind in kinds if kind[1] == _ALL_COUNTS or kind[0] == "scene"]
    columns = [(prefix, name) for name in SETS for prefix in ("", REAL, DECODED)]
    header = [part for name in ("held out", "seen") for part in (name, "real images", "round trips")]
    lines = [_row("", header), _row("---", ["---"] * len(header))]
    for attribute, group in sorted(shown, key=lambda kind: (kind[0] != "scene", kind[1] != _ALL_COUNTS)):
        label = "whole scene" if attribute == "scene" else attribute
        label += "" if group == _ALL_COUNTS else f", {group} object{'s' if group != '1' else ''}"
        estimates = [by_place.get((prefix + name, attribute, group)) for prefix, name in columns]
        shown_as = zip(columns, estimates, strict=True)
        lines.append(_row(label, [_percent(estimate, not prefix) for (prefix, _), estimate in shown_as]))
    numbers = report.metrics
    distances = {f"Frechet distance ({space})": f"frechet_{space}", f"kernel distance ({space})": f"kid_{space}"}
    for label, key in distances.items():
        lines.append(_scores(label, [(f"{key}_{name}", f"{key}_{name}_floor") for name in SETS], numbers))
    margins = [(f"clip_score_margin_{name}", f"clip_score_margin_{REAL}{name}") for name in SETS]
    lines.append(_scores("CLIP score, own minus other caption", margins, numbers))
    scales = ("oracle_real", "oracle_shuffled", "oracle_reconstructed", "retrieval_accuracy")
    notes = [f"{key} {numbers[key]:.4f}" for key in scales if key in numbers]
    counts = f"{numbers[f'num_samples_{HELD_OUT}']} held-out and {numbers[f'num_samples_{SEEN}']} seen prompts"
    notes.append(f"{counts}, {numbers['num_reference_images']} training images as reference")
    return "\n".join([*lines, "", "; ".join(notes), ""])


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
