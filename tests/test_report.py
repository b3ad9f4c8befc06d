"""Numbers of a report: each accuracy and distance beside its scale, under the names that its oracle and spaces give."""

from dataclasses import replace

import pytest
import torch

from ldm.evaluation import metrics, report, tables
from tests.report_data import FEATURES, MUSIC, SETS, SPACE, SUBJECTS, features, made, measured, searched


def test_accuracies_are_shares_of_what_is_stated():
    numbers = made().metrics
    assert numbers["scene_accuracy_held_out"] == 6 / 12 and numbers["scene_accuracy_seen"] == 9 / 12
    assert numbers["colour_accuracy_seen"] == 9 / 12
    assert numbers["relation_accuracy_seen"] == pytest.approx(4 / 6, abs=1e-5)  # images 1, 3, 5, 7 of 1, 3, ..., 11
    assert numbers["relation_accuracy"] == pytest.approx((3 + 3 + 4) / 18, abs=1e-5)
    assert not any(name.startswith("place") for name in numbers)
    assert numbers["scene_accuracy_held_out_1_objects"] == 3 / 6
    wilson = metrics.proportion([True] * 6 + [False] * 6)
    assert numbers["scene_accuracy_held_out_low"] == pytest.approx(wilson.low, abs=1e-5)
    assert numbers["scene_accuracy_held_out_high"] == pytest.approx(wilson.high, abs=1e-5)


def test_accuracies_are_given_for_all_images_and_by_the_count_of_their_claims():
    found = {(a.images, a.group): a.estimate.count for a in made().accuracies if a.attribute == "scene"}
    assert found == {
        (name, group): 12 if group == report.ALL else 6 for name in SUBJECTS for group in (report.ALL, "1", "2")
    }


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


def test_cmmd_is_taken_where_it_is_defined():
    found, tensors = made(space=replace(SPACE, has_cmmd=True)), measured()
    reference = tensors["reference"][FEATURES]
    for name in SETS:
        for subject, key in ((name, f"cmmd_{name}"), (f"real_{name}", f"cmmd_{name}_floor")):
            expected = metrics.cmmd(tensors[subject][FEATURES], reference)
            assert found.metrics[key] == pytest.approx(expected, rel=1e-5)
    assert not any(name.startswith("cmmd") for name in made().metrics)
    assert "| CMMD (clip) |" in tables.main_table(found) and "CMMD" not in tables.main_table(made())


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
    wilson = metrics.proportion([True] * 6 + [False] * 6)
    bounds = [sweep[0][f"scene_accuracy_{end}"] for end in ("low", "high")]
    assert bounds == pytest.approx([wilson.low, wilson.high], abs=1e-5)
    assert {"relation_accuracy", "own_clip_score_margin", "own_clip_score_margin_low"} <= sweep[0].keys()


def test_settings_can_be_chosen_without_a_look_at_the_held_out_prompts():
    found = made(without=("held_out",))
    assert not any("held_out" in name for name in found.metrics)
    assert found.metrics["relation_accuracy"] == pytest.approx((3 + 4) / 12, abs=1e-5)


def test_without_an_oracle_there_is_no_accuracy_of_attributes():
    found = made(oracle=None)
    distances = [f"frechet_own_clip_{name} {found.metrics[f'frechet_own_clip_{name}']}" for name in SETS]
    assert found.accuracies == [] and found.summary() == ", ".join(distances)
    assert not any("accuracy" in name or "oracle" in name for name in found.metrics)


def test_retrieval_finds_any_image_with_the_prompt_as_a_caption():
    queries = measured()["seen"][FEATURES]
    gallery = torch.cat([queries[:3], features(7, 5), -queries[3:5], queries[:1]])  # three of five are at their places
    gallery = gallery[[0, 1, 2, 8, 9, 3, 4, 5]]
    own = torch.eye(5, 8, dtype=torch.bool)
    found = searched(gallery, own)
    assert found.metrics["retrieval_accuracy"] == 3 / 5 and found.summary() == "retrieval_accuracy 0.6"
    assert (found.metrics["num_retrieval_prompts"], found.metrics["num_retrieval_images"]) == (5, 8)
    named_alike = own | torch.tensor([False] * 3 + [True, False])[:, None] & (gallery == queries[3]).all(1)
    nearest = (queries[3] @ gallery.T).argmax()
    named_alike[3, nearest] = True
    assert searched(gallery, named_alike).metrics["retrieval_accuracy"] == 4 / 5


def test_another_oracle_gives_its_own_names():
    found = made(MUSIC)
    numbers = found.metrics
    assert numbers["key_accuracy"] == pytest.approx((6 + 7 + 9) / 36, abs=1e-5)
    assert numbers["melody_accuracy_held_out_2_voices"] == numbers["melody_accuracy_held_out_1_voices"] == 0.5
    assert {"melody_accuracy_seen_low", "oracle_real", "oracle_shuffled", "oracle_reconstructed"} <= numbers.keys()
    assert not any(
        word in name for name in numbers for word in ("scene", "strict", "relation", "object", "key_accuracy_seen_low")
    )
    assert {"melody_accuracy", "key_accuracy"} <= found.sweep[0].keys()
    assert found.summary() == (
        "melody_accuracy_held_out 0.5, melody_accuracy_unseen 0.583333, melody_accuracy_seen 0.75, "
        "key_accuracy 0.611111"
    )
