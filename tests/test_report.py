from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from ldm.core import config
from ldm.evaluation import metrics, report
from ldm.evaluation.measure import CHECKS, features_in
from ldm.evaluation.params import EvaluateParams
from ldm.sampling.samples import Prompt
from tests.import_closure import ROOT
from tests.trained_data import CHANGES

PARAMS = config.read(EvaluateParams, "evaluate", ROOT / "params.yaml").model_copy(update=CHANGES["evaluate"])
SPACE = metrics.FeatureSpace("own_clip", "f" * 64, 4, lambda image: image.float())
SETS = ("held_out", "unseen", "seen")
SUBJECTS = tuple(prefix + name for prefix in ("", "real_", "decoded_") for name in SETS)
FEATURES = features_in("own_clip")
COUNT = 12


def prompts(claims: bool = True) -> list[Prompt]:
    """Odd ones tell of two objects."""
    return [Prompt(str(i), {"count": 1 + i % 2} if claims else None, i, "val", str(i)) for i in range(COUNT)]


def codes(num_right: int, stated: bool = True) -> torch.Tensor:
    """Every attribute right in the first images; places are stated nowhere, relations for two objects only."""
    checks = (torch.arange(COUNT) < num_right).to(torch.int8)[:, None].repeat(1, len(CHECKS))
    checks[:, CHECKS.index("place")] = -1
    checks[::2, CHECKS.index("relation")] = -1
    return checks if stated else torch.full_like(checks, -1)


def features(seed: int, count: int = COUNT) -> torch.Tensor:
    return normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)), dim=1)


RIGHT = dict(zip(SUBJECTS, (6, 7, 9, 12, 12, 11, 8, 9, 10), strict=True))


def measured(claims: bool = True) -> dict[str, dict[str, torch.Tensor]]:
    found = {
        name: {
            FEATURES: features(seed),
            "clip_text": features(100),
            "checks": codes(RIGHT[name], claims),
            "shuffled_checks": codes(1, claims),
        }
        for seed, name in enumerate(SUBJECTS)
    }
    found["sweep_1"] = found["held_out"] | {FEATURES: features(50)}
    found["sweep_4"] = found["seen"]
    found["real_sweep"] = found["real_seen"]
    found["reference"] = {FEATURES: features(60, 30)}
    return found


class FakeSamples(SimpleNamespace):
    """Prompts without images."""

    def __len__(self) -> int:
        return len(self.prompts)


def made(claims: bool = True, without: tuple[str, ...] = (), matching=None, **changes) -> report.Report:
    scales = {"held_out": 3.0, "unseen": 3.0, "seen": 3.0, "sweep_1": 1.0, "sweep_4": 4.0}
    named = {name: scale for name, scale in scales.items() if name not in without}
    samples = {name: FakeSamples(prompts=prompts(claims), guidance_scale=scale) for name, scale in named.items()}
    return report.make(samples, measured(claims) | changes, [SPACE], matching, PARAMS)


def test_accuracies_are_shares_of_what_is_stated():
    numbers = made().metrics
    assert numbers["scene_accuracy_held_out"] == 6 / 12 and numbers["scene_accuracy_seen"] == 9 / 12
    assert numbers["colour_accuracy_seen"] == 9 / 12
    assert numbers["relation_accuracy_seen"] == pytest.approx(4 / 6, abs=1e-5)  # images 1, 3, 5, 7 of 1, 3, ..., 11
    assert numbers["relation_accuracy"] == pytest.approx((3 + 3 + 4) / 18, abs=1e-5)
    assert not any(name.startswith("place") for name in numbers)
    assert numbers["scene_accuracy_held_out_1_objects"] == 3 / 6
    wilson = metrics.share([True] * 6 + [False] * 6)
    assert numbers["scene_accuracy_held_out_low"] == pytest.approx(wilson.low, abs=1e-5)
    assert numbers["scene_accuracy_held_out_high"] == pytest.approx(wilson.high, abs=1e-5)


def test_the_oracle_is_scored_on_real_shuffled_and_reconstructed_images():
    numbers = made().metrics
    assert numbers["oracle_real"] == pytest.approx(35 / 36, abs=1e-5)
    assert numbers["oracle_shuffled"] == pytest.approx(3 / 36, abs=1e-5)
    assert numbers["oracle_reconstructed"] == 27 / 36
    assert {"oracle_real_strict", "oracle_reconstructed_strict", "scene_strict_accuracy_held_out_low"} <= numbers.keys()


def test_distances_name_their_space_and_stand_beside_their_floor():
    numbers, tensors = made().metrics, measured()
    reference = tensors["reference"][FEATURES]
    for name in SETS:
        for subject, key in ((name, f"frechet_own_clip_{name}"), (f"real_{name}", f"frechet_own_clip_{name}_floor")):
            expected = metrics.frechet_distance(tensors[subject][FEATURES], reference)
            assert numbers[key] == pytest.approx(expected, rel=1e-5)
    pooled = [torch.cat([tensors[f"{p}_{n}"][FEATURES] for n in SETS]) for p in ("decoded", "real")]
    assert numbers["frechet_own_clip_reconstructed"] == pytest.approx(metrics.frechet_distance(*pooled), rel=1e-5)
    assert numbers["own_clip_extractor_sha256"] == "f" * 64
    assert (numbers["num_samples_seen"], numbers["num_reference_images"]) == (12, 30)
    assert not any("fid" in name.lower().split("_") for name in numbers)


def test_clip_scores_stand_beside_those_of_shuffled_captions():
    numbers, tensors = made().metrics, measured()
    matched, margin = metrics.clip_score(tensors["seen"][FEATURES], tensors["seen"]["clip_text"])
    assert numbers["own_clip_score_seen"] == pytest.approx(matched.value, abs=1e-5)
    assert numbers["own_clip_score_margin_seen_low"] == pytest.approx(margin.low, abs=1e-5)


def test_numbers_are_flat_and_hold_no_time():
    numbers = made().metrics
    assert all(isinstance(value, float | int | str) for value in numbers.values())
    assert not any(word in name for name in numbers for word in ("second", "time", "device", "speed"))


def test_the_sweep_has_a_row_per_scale_with_the_columns_of_its_plot():
    sweep = made().sweep
    assert [row["guidance_scale"] for row in sweep] == [1, 4]
    assert [row["scene_accuracy"] for row in sweep] == [0.5, 0.75]
    tensors = measured()
    for subject, key in (("sweep_1", "frechet_own_clip"), ("real_sweep", "frechet_own_clip_floor")):
        expected = metrics.frechet_distance(tensors[subject][FEATURES], tensors["reference"][FEATURES])
        assert sweep[0][key] == pytest.approx(expected, rel=1e-5)
    wilson = metrics.share([True] * 6 + [False] * 6)
    bounds = [sweep[0][f"scene_accuracy_{end}"] for end in ("low", "high")]
    assert bounds == pytest.approx([wilson.low, wilson.high], abs=1e-5)
    assert {"relation_accuracy", "own_clip_score_margin", "own_clip_score_margin_low"} <= sweep[0].keys()


def test_settings_can_be_chosen_without_a_look_at_the_held_out_prompts():
    found = made(without=("held_out",))
    assert not any("held_out" in name for name in found.metrics)
    assert "held out" not in report.table(found) and "| unseen |" in report.table(found).splitlines()[0]
    assert found.metrics["relation_accuracy"] == pytest.approx((3 + 4) / 12, abs=1e-5)


def test_every_accuracy_has_its_interval_in_the_table_of_accuracies():
    header, *rows = made().accuracy_rows()
    assert header == ["images", "attribute", "num_objects", "accuracy", "low", "high", "num_images"]
    wilson = metrics.share([True] * 5 + [False])
    expected = ["decoded_seen", "relation", "2", f"{5 / 6:.4f}", f"{wilson.low:.4f}", f"{wilson.high:.4f}", "6"]
    assert expected in rows
    assert {row[0] for row in rows} == set(SUBJECTS)


def test_without_claims_retrieval_takes_the_place_of_accuracy():
    found = made(claims=False)
    assert not any("accuracy" in name or "oracle" in name for name in found.metrics)
    queries = measured()["seen"][FEATURES]
    gallery = torch.cat([queries[:3], features(7, 5), -queries[3:5], queries[:1]])  # three of five are at their places
    gallery = gallery[[0, 1, 2, 8, 9, 3, 4, 5]]
    own = torch.eye(5, 8, dtype=torch.bool)
    found = made(claims=False, gallery={FEATURES: gallery}, matching=own)
    assert found.metrics["retrieval_accuracy"] == 3 / 5
    assert (found.metrics["num_retrieval_prompts"], found.metrics["num_retrieval_images"]) == (5, 8)
    named_alike = own | torch.tensor([False] * 3 + [True, False])[:, None] & (gallery == queries[3]).all(1)
    nearest = (queries[3] @ gallery.T).argmax()
    named_alike[3, nearest] = True
    assert made(claims=False, gallery={FEATURES: gallery}, matching=named_alike).metrics["retrieval_accuracy"] == 4 / 5


def test_the_markdown_table_quotes_the_numbers():
    text = report.table(made())
    lines = text.splitlines()
    columns = [part for name in ("held out", "unseen", "seen") for part in (name, "real images", "round trips")]
    assert lines[0] == f"|  | {' | '.join(columns)} |"
    held_out, seen = ["50.0 % (25.4 to 74.6)", "100.0 %", "66.7 %"], ["75.0 % (46.8 to 91.1)", "91.7 %", "83.3 %"]
    cells = lines[2].strip("| ").split(" | ")
    assert cells[0] == "whole scene" and cells[1:4] == held_out and cells[7:] == seen
    distance = next(line for line in lines if line.startswith("| Frechet distance (own clip) | "))
    numbers = [f"{made().metrics[f'frechet_own_clip_{key}']:.4g}" for key in ("held_out", "held_out_floor")]
    assert distance.split(" | ")[1:4] == [*numbers, ""]
    sweep = lines.index(next(line for line in lines if line.startswith("| guidance scale |")))
    assert len({line.count("|") for line in lines[:sweep] if line.startswith("|")}) == 1
    assert lines[sweep + 2].startswith("| 1 | 50.0 % (25.4 to 74.6) | ")
    assert "oracle_real 0.9722" in text and "30 training images" in text
    assert "whole scene" not in report.table(made(claims=False))
