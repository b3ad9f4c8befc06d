"""Compute all numbers of an evaluation from measurements of images.

A number is meaningless without a scale. Every accuracy is therefore given beside that of the real images of the same
prompts and of their round trips through the autoencoder, and every distance beside that of the same real images.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int8
from torch import Tensor

from ldm.evaluation import metrics
from ldm.evaluation.measure import DECODED, GALLERY, REAL, REAL_SWEEP, REFERENCE, Measured, features_in
from ldm.evaluation.metrics import Estimate
from ldm.evaluation.params import EvaluateParams, RetrievalParams
from ldm.evaluation.spaces import OWN_CLIP, FeatureSpace
from ldm.oracles.oracle import NOT_STATED, RIGHT, Oracle
from ldm.sampling.samples import SEEN, SETS, Samples

ALL = "all"
"""Name of the group of all images of a set."""
CONTROL = "oracle_"
"""Prefix of the names of controls: accuracies of images that are known to be right, or wrong."""
RETRIEVAL, NUM_RETRIEVAL = "retrieval_accuracy", "num_retrieval_prompts"
NO_CLIP = "no score of captions, as the run has no CLIP"
Value = float | int | str


@dataclass(frozen=True)
class Accuracy:
    """Share of images with the right attribute, among those images of a set whose caption states the attribute."""

    images: str
    attribute: str
    group: str
    """`ALL`, or a number: the images whose claim states this number of `Oracle.counted`."""
    estimate: Estimate


@dataclass(frozen=True)
class Report:
    """Results of an evaluation."""

    metrics: dict[str, Value]
    accuracies: list[Accuracy]
    sweep: list[dict[str, float]]
    sets: list[str]
    """The members of `SETS` that were sampled."""
    spaces: list[str]
    """Names of the feature spaces in which distances were measured."""
    oracle: Oracle | None
    """The source of `accuracies`; None if they are empty."""

    def summary(self) -> str:
        """The main accuracies on one line, or distances if there are none; and whether there is no CLIP."""
        names = [RETRIEVAL]
        if self.oracle is not None:
            names += [f"{self.oracle.main}_accuracy_{name}" for name in self.sets]
            names += [f"{attribute}_accuracy" for attribute in self.oracle.highlights]
        if not self.metrics.keys() & set(names):
            names = [f"frechet_{self.spaces[0]}_{name}" for name in self.sets]
        found = [f"{name} {self.metrics[name]}" for name in names if name in self.metrics]
        return ", ".join([*found, *([] if OWN_CLIP in self.spaces else [NO_CLIP])])


def build(
    samples: Mapping[str, Samples],
    measured: Measured,
    spaces: Sequence[FeatureSpace],
    oracle: Oracle | None,
    matching: Bool[Tensor, "prompts gallery"] | None,
    params: EvaluateParams,
) -> Report:
    """All numbers of an evaluation from the tensors of `Instruments.measure`.

    matching: whether each prompt is a caption of each image of the gallery; None without a gallery.
    """
    sets = [name for name in SETS if name in samples]
    accuracies: list[Accuracy] = []
    numbers: dict[str, Value] = {}
    if oracle is not None:
        for prefix in ("", REAL, DECODED):
            for name in sets:
                accuracies += _accuracies(prefix + name, samples[name], measured[prefix + name]["checks"], oracle)
        numbers |= _accuracy_numbers(accuracies, sets, oracle) | _pooled_numbers(measured, sets, oracle)
    for space in spaces:
        numbers |= _distances(measured, space.name, sets, params)
        if space.has_cmmd:
            numbers |= _cmmds(measured, space.name, sets)
        numbers[f"{space.name}_extractor_sha256"] = space.sha256
    if OWN_CLIP in [space.name for space in spaces]:
        numbers |= _clip_scores(measured, sets)
    if isinstance(params.accuracy, RetrievalParams):
        assert matching is not None, "retrieval searches a gallery"
        numbers |= _retrieval(measured, matching, params.accuracy)
    # How many images the numbers are based on.
    numbers |= {f"num_samples_{name}": len(samples[name]) for name in sets}
    numbers["num_reference_images"] = len(measured[REFERENCE][features_in(spaces[0].name)])
    names = [space.name for space in spaces]
    sweep = _sweep(samples, measured, names, oracle)
    return Report(numbers, accuracies, sweep, sets, names, oracle)


def _accuracies(images: str, samples: Samples, checks: Int8[Tensor, "n attributes"], oracle: Oracle) -> list[Accuracy]:
    """Accuracy of every attribute that some caption states, over all images and by the oracle's count of a claim."""
    counts: list[int | None] = [None] * len(samples)
    if oracle.count is not None:
        counts = [None if prompt.claim is None else oracle.count(prompt.claim) for prompt in samples.prompts]
    groups = {ALL: torch.ones(len(counts), dtype=torch.bool)}
    for count in sorted({count for count in counts if count is not None}):
        groups[str(count)] = torch.tensor([other == count for other in counts])
    accuracies: list[Accuracy] = []
    for attribute, codes in zip(oracle.attributes, checks.T, strict=True):
        for group, members in groups.items():
            estimate = _estimate(codes[members])
            if estimate is not None:
                accuracies.append(Accuracy(images, attribute, group, estimate))
    return accuracies


def _estimate(codes: Int8[Tensor, "n"]) -> Estimate | None:
    """Proportion of right codes among those of stated attributes; None if none is stated."""
    stated = codes[codes != NOT_STATED]
    return metrics.proportion((stated == RIGHT).tolist()) if len(stated) else None


def _accuracy_numbers(accuracies: Iterable[Accuracy], sets: Sequence[str], oracle: Oracle) -> dict[str, Value]:
    """Accuracies of the samples: every attribute, and the main attribute by group; headlines with intervals."""
    numbers: dict[str, Value] = {}
    for accuracy in accuracies:
        if accuracy.images not in sets:
            continue
        name = f"{accuracy.attribute}_accuracy_{accuracy.images}"
        if accuracy.group == ALL:
            numbers[name] = _short(accuracy.estimate.value)
            if accuracy.attribute in oracle.headlines:
                numbers |= _bounds(name, accuracy.estimate)
        elif accuracy.attribute == oracle.main:
            numbers[f"{name}_{accuracy.group}_{oracle.counted}s"] = _short(accuracy.estimate.value)
    return numbers


def _pooled_numbers(measured: Measured, sets: Sequence[str], oracle: Oracle) -> dict[str, Value]:
    """Numbers over all sets together: highlights of the samples, and controls of the headlines. Controls are real
    images with their own claims, real images with the claims of others, and round trips."""
    real, decoded = ([prefix + name for name in sets] for prefix in (REAL, DECODED))
    variants = {attribute: attribute.removeprefix(oracle.main) for attribute in oracle.headlines}
    pooled = {f"{name}_accuracy": _pooled(measured, sets, "checks", name, oracle) for name in oracle.highlights}
    for name, variant in variants.items():
        pooled[f"{CONTROL}real{variant}"] = _pooled(measured, real, "checks", name, oracle)
    pooled[f"{CONTROL}shuffled"] = _pooled(measured, real, "shuffled_checks", oracle.main, oracle)
    for name, variant in variants.items():
        pooled[f"{CONTROL}reconstructed{variant}"] = _pooled(measured, decoded, "checks", name, oracle)
    return {name: _short(estimate.value) for name, estimate in pooled.items() if estimate is not None}


def _pooled(
    measured: Measured, subjects: Iterable[str], tensor: str, attribute: str, oracle: Oracle
) -> Estimate | None:
    codes = torch.cat([measured[name][tensor] for name in subjects])
    return _estimate(codes[:, oracle.attributes.index(attribute)])


def _distances(measured: Measured, space: str, sets: Sequence[str], params: EvaluateParams) -> dict[str, Value]:
    """Frechet and kernel distance from the reference, for the samples and for the real images of the same prompts
    (`_floor`); and the Frechet distance between round trips and their originals."""
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


def _cmmds(measured: Measured, space: str, sets: Sequence[str]) -> dict[str, Value]:
    """CMMD from the reference, for the samples and for the real images of the same prompts (`_floor`)."""
    reference, subjects = measured[REFERENCE][features_in(space)], {name: "" for name in sets}
    subjects |= {REAL + name: "_floor" for name in sets}
    distances = {name: metrics.cmmd(measured[name][features_in(space)], reference) for name in subjects}
    return {f"cmmd_{name.removeprefix(REAL)}{subjects[name]}": _short(value) for name, value in distances.items()}


def _clip_score(measured: Mapping[str, Tensor]) -> tuple[Estimate, Estimate]:
    return metrics.clip_score(measured[features_in(OWN_CLIP)], measured["clip_text"])


def _clip_scores(measured: Measured, sets: Sequence[str]) -> dict[str, Value]:
    numbers: dict[str, Value] = {}
    for name in (*sets, *(REAL + name for name in sets)):
        matched, margin = _clip_score(measured[name])
        numbers[f"own_clip_score_{name}"] = _short(matched.value)
        numbers[f"own_clip_score_margin_{name}"] = _short(margin.value)
        numbers |= _bounds(f"own_clip_score_margin_{name}", margin)
    return numbers


def _retrieval(
    measured: Measured, matching: Bool[Tensor, "prompts gallery"], params: RetrievalParams
) -> dict[str, Value]:
    """How often a sample of a seen prompt retrieves an image that has this prompt as a caption."""
    gallery = measured[GALLERY][features_in(OWN_CLIP)]
    queries = measured[SEEN][features_in(OWN_CLIP)][: len(matching)]
    estimate = metrics.proportion(metrics.is_retrieved(queries, gallery, matching, params.k).tolist())
    counts: dict[str, Value] = {NUM_RETRIEVAL: estimate.count, "num_retrieval_images": len(gallery)}
    return {RETRIEVAL: _short(estimate.value)} | _bounds(RETRIEVAL, estimate) | counts


def _sweep(
    samples: Mapping[str, Samples], measured: Measured, spaces: Sequence[str], oracle: Oracle | None
) -> list[dict[str, float]]:
    """One row per guidance scale; estimates have the bounds of their 95 % intervals (`_low`, `_high`).

    Accuracies of attributes that no caption states are left out. `frechet_SPACE_floor` and `kid_SPACE_floor` are the
    distances of the real images of the same prompts; only the part of a distance above this floor says something about
    the samples. There is no kernel distance of fewer than three prompts.
    """
    rows: list[dict[str, float]] = []
    for name, part in samples.items():
        if name in SETS:
            continue
        estimates: dict[str, Estimate | None] = {}
        if oracle is not None:
            for attribute in (*oracle.headlines, *oracle.highlights):
                estimates[f"{attribute}_accuracy"] = _pooled(measured, [name], "checks", attribute, oracle)
        if OWN_CLIP in spaces:
            estimates["own_clip_score_margin"] = _clip_score(measured[name])[1]
        row = {"guidance_scale": part.guidance_scale}
        for key, estimate in estimates.items():
            if estimate is not None:
                row |= {key: _short(estimate.value), **_bounds(key, estimate)}
        for space in spaces:
            row |= _sweep_distances(measured, name, space)
        rows.append(row)
    return rows


def _sweep_distances(measured: Measured, name: str, space: str) -> dict[str, float]:
    """Distances of a part of the sweep in one space, and those of the real images of its prompts."""
    distances: dict[str, float] = {}
    reference = measured[REFERENCE][features_in(space)]
    for subject, suffix in ((name, ""), (REAL_SWEEP, "_floor")):
        features = measured[subject][features_in(space)]
        distances[f"frechet_{space}{suffix}"] = _short(metrics.frechet_distance(features, reference))
        if len(features) > 2:
            kernel = metrics.kernel_interval(features, reference)
            distances[f"kid_{space}{suffix}"] = _short(kernel.value)
            distances |= {} if suffix else _bounds(f"kid_{space}", kernel)
    return distances


def _bounds(name: str, estimate: Estimate) -> dict[str, float]:
    return {f"{name}_low": _short(estimate.low), f"{name}_high": _short(estimate.high)}


def _short(value: float) -> float:
    """Round to six significant digits, which do not depend on the order of summation."""
    return float(f"{value:.6g}")
