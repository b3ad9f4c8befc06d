"""Measurements of a run of twelve prompts a set, without images, and the report of them."""

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ldm.core import config
from ldm.evaluation import report
from ldm.evaluation.measure import features_in
from ldm.evaluation.params import EvaluateParams
from ldm.evaluation.spaces import OWN_CLIP, FeatureSpace
from ldm.oracles import shapes
from ldm.oracles.oracle import Oracle
from ldm.sampling.samples import Prompt
from tests.import_closure import ROOT
from tests.trained_data import CHANGES

PARAMS = config.read(EvaluateParams, "evaluate", ROOT / "params.yaml").model_copy(update=CHANGES["evaluate"])
RETRIEVAL = {"kind": "retrieval", "num_prompts": 5, "k": 2, "num_images": 12}
SPACE = FeatureSpace(OWN_CLIP, "f" * 64, lambda image: image.float())
ORACLE = shapes.ORACLE
MUSIC = Oracle(
    attributes=("key", "melody"),
    headlines=("melody",),
    highlights=("key",),
    labels={"melody": "whole melody"},
    counted="voice",
    count=ORACLE.count,
    read=ORACLE.read,
    compare=ORACLE.compare,
    told=ORACLE.told,
)
"""Of a corpus that nobody has heard of."""
SETS = ("held_out", "unseen", "seen")
SUBJECTS = tuple(prefix + name for prefix in ("", "real_", "decoded_") for name in SETS)
FEATURES = features_in(OWN_CLIP)
COUNT = 12
RIGHT = dict(zip(SUBJECTS, (6, 7, 9, 12, 12, 11, 8, 9, 10), strict=True))


def prompts(claims: bool = True) -> list[Prompt]:
    """Odd ones tell of two objects."""
    return [Prompt(str(i), {"count": 1 + i % 2} if claims else None, i, "val", str(i)) for i in range(COUNT)]


def codes(num_right: int, oracle: Oracle = ORACLE) -> Tensor:
    """Every attribute right in the first images; places are stated nowhere, relations for two objects only."""
    checks = (torch.arange(COUNT) < num_right).to(torch.int8)[:, None].repeat(1, len(oracle.attributes))
    if oracle is ORACLE:
        checks[:, oracle.attributes.index("place")] = -1
        checks[::2, oracle.attributes.index("relation")] = -1
    return checks


def features(seed: int, count: int = COUNT) -> Tensor:
    return normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)), dim=1)


def measured(oracle: Oracle | None = ORACLE) -> dict[str, dict[str, Tensor]]:
    tensors = {name: {FEATURES: features(seed), "clip_text": features(100)} for seed, name in enumerate(SUBJECTS)}
    if oracle is not None:
        for name in SUBJECTS:
            tensors[name] |= {"checks": codes(RIGHT[name], oracle), "shuffled_checks": codes(1, oracle)}
    tensors["sweep_1"] = tensors["held_out"] | {FEATURES: features(50)}
    tensors["sweep_4"] = tensors["seen"]
    tensors["real_sweep"] = tensors["real_seen"]
    tensors["reference"] = {FEATURES: features(60, 30)}
    return tensors


def made(oracle: Oracle | None = ORACLE, without: tuple[str, ...] = (), space: FeatureSpace = SPACE) -> report.Report:
    """The report, `without` some sets."""
    return report.build(cast("Any", _samples(oracle, without)), measured(oracle), [space], oracle, None, PARAMS)


def searched(gallery: Tensor, matching: Tensor) -> report.Report:
    """The report of a corpus without an oracle, whose samples search the gallery."""
    tensors = measured(None) | {"gallery": {FEATURES: gallery}}
    params = EvaluateParams.model_validate(PARAMS.model_dump() | {"accuracy": RETRIEVAL, "feature_spaces": []})
    return report.build(cast("Any", _samples(None, ())), tensors, [SPACE], None, matching, params)


class _FakeSamples(SimpleNamespace):
    """Prompts without images."""

    def __len__(self) -> int:
        return len(self.prompts)


def _samples(oracle: Oracle | None, without: tuple[str, ...]) -> dict[str, _FakeSamples]:
    scales = {"held_out": 3.0, "unseen": 3.0, "seen": 3.0, "sweep_1": 1.0, "sweep_4": 4.0}
    return {
        name: _FakeSamples(prompts=prompts(oracle is not None), guidance_scale=scale)
        for name, scale in scales.items()
        if name not in without
    }
