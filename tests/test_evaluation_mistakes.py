"""Which values samples have in place of others, and which samples are the worst."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from ldm.core.errors import IntegrityError
from ldm.core.images import encode_png
from ldm.evaluation import mistakes
from ldm.evaluation.mistakes import Failure
from ldm.evaluation.spaces import OWN_CLIP
from ldm.oracles.oracle import Told
from tests.report_data import COUNT, FEATURES, ORACLE, SETS, _samples, measured

RIGHT: Told = ("shape", "star", "star")
WRONG: Told = ("shape", "star", "cross")


def told() -> dict[str, list[list[Told]]]:
    """One star of the first set is a cross; the real images are right; those of the sweep are not counted."""
    sets = {prefix + name: [[RIGHT] for _ in range(COUNT)] for name in SETS for prefix in ("", "real_")}
    sets["held_out"][11] = [WRONG, RIGHT]
    return sets | {"sweep_1": [[WRONG]] * 4, "decoded_seen": [[WRONG]] * 4}


def worst(oracle=ORACLE, spaces=(OWN_CLIP,), values=None) -> list[Failure]:
    samples = cast("Any", _samples(oracle, ()))
    return mistakes.worst(samples, measured(oracle) if values is None else values, told(), list(spaces), oracle)


def test_values_are_counted_over_all_sets_apart_for_samples_and_real_images() -> None:
    counts = mistakes.confusion(told())
    assert counts == {
        ("samples", *RIGHT): 3 * COUNT,
        ("samples", *WRONG): 1,
        ("real images", *RIGHT): 3 * COUNT,
    }


def test_the_worst_are_not_right_and_are_then_least_like_their_prompts() -> None:
    found = worst()
    assert len(found) == mistakes.NUM_WORST
    # The first images of every set are right (`report_data.RIGHT`); the others have all wrong that their prompts state.
    wrong = {"held_out": range(6, 12), "unseen": range(7, 12), "seen": range(9, 12)}
    assert {(f.images, f.number) for f in found[:14]} == {(name, i) for name, each in wrong.items() for i in each}
    scores = [failure.score for failure in found]
    assert scores[:14] == sorted(scores[:14]) and scores[14:] == sorted(scores[14:])
    assert all(failure.wrong for failure in found[:14]) and not any(failure.wrong for failure in found[14:])
    assert not {"whole scene", "whole scene, strict outlines"} & {name for failure in found for name in failure.wrong}
    assert {"shape", "relation", "strict outlines"} <= {name for failure in found for name in failure.wrong}


def test_a_failure_says_what_was_read_in_place_of_what_was_asked_for() -> None:
    found = {(failure.images, failure.number): failure.read for failure in worst()}
    assert found["held_out", 11] == ["shape: cross, not star"]
    assert all(read == [] for key, read in found.items() if key != ("held_out", 11))


def test_without_an_oracle_the_worst_are_least_like_their_prompts() -> None:
    found = worst(oracle=None)
    scores = {}
    for name in SETS:
        own, real = measured(None)[name], measured(None)[f"real_{name}"]
        for i in range(COUNT):
            scores[name, i] = float((own[FEATURES][i] - real[FEATURES][i]) @ own["clip_text"][i])
    expected = sorted(scores, key=scores.__getitem__)[: mistakes.NUM_WORST]
    assert [(failure.images, failure.number) for failure in found] == expected
    assert all(failure.wrong == [] for failure in found)


def test_without_a_clip_the_worst_are_farthest_from_the_real_images() -> None:
    values = {name: {"features_shapes": tensors[FEATURES]} for name, tensors in measured(None).items()}
    values["seen"]["features_shapes"] = values["real_seen"]["features_shapes"].clone()
    values["seen"]["features_shapes"][3] += 9
    found = worst(None, ("shapes",), values)
    assert (found[0].images, found[0].number, found[0].score) == ("seen", 3, pytest.approx(-18))


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    found, counts = worst(), mistakes.confusion(told())
    mistakes.write(tmp_path, found, counts)
    assert mistakes.read_failures(tmp_path / mistakes.FAILURES) == found
    assert mistakes.read_confusion(tmp_path / mistakes.CONFUSION) == counts
    mistakes.write(tmp_path, [], {})
    assert mistakes.read_confusion(tmp_path / mistakes.CONFUSION) == {}
    with pytest.raises(IntegrityError, match=r"confusion.csv: columns set, number.*\n.*dvc repro evaluate"):
        (tmp_path / mistakes.FAILURES).rename(tmp_path / mistakes.CONFUSION)
        mistakes.read_confusion(tmp_path / mistakes.CONFUSION)
    with pytest.raises(IntegrityError, match=r"failures.csv: FileNotFoundError: .*\n.*dvc repro evaluate"):
        mistakes.read_failures(tmp_path / mistakes.FAILURES)


@pytest.mark.parametrize("row", ["seen,one,a star,,,0.5", "seen,1"])
def test_a_row_that_cannot_be_read_is_damage(tmp_path: Path, row: str) -> None:
    mistakes.write(tmp_path, [], {})
    path = tmp_path / mistakes.FAILURES
    path.write_text(f"{path.read_text()}{row}\n")
    with pytest.raises(IntegrityError, match=r"failures.csv: \w+Error: .*\n.*dvc repro evaluate"):
        mistakes.read_failures(path)


def test_the_picture_shows_each_failure_beside_the_real_image_of_its_prompt() -> None:
    class Part:
        prompts = [None, None]

        def png(self, i: int) -> bytes:
            return encode_png(torch.full((128, 128, 3), 10 * i, dtype=torch.uint8).numpy())

    class Real:
        def origin(self, prompt: None) -> int:
            return 1

        def png(self, origin: int) -> bytes:
            return encode_png(torch.full((128, 128, 3), 200, dtype=torch.uint8).numpy())

    failures = [Failure("seen", i, "a star", [], ["shape: cross, not star"], 0.0) for i in (0, 1)]
    picture = mistakes.picture(failures, cast("Any", {"seen": Part()}), cast("Any", Real()))
    found = [picture.getpixel((60 + 132 * i, 60)) for i in range(4)]
    assert [colour[0] for colour in cast("Any", found)] == [0, 200, 10, 200]
