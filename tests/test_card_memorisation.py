"""Copies of training images among samples: found, and not mistaken for what real images or blurred ones do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from ldm.core.errors import ConfigError, RejectedError
from ldm.core.images import decode, encode
from ldm.core.shards import SPLITS, write
from ldm.evaluation.real_images import RealImages
from ldm.sampling.samples import Prompt
from ldm.tools.card import memorisation
from ldm.tools.model.params import MemorisationParams

Image = UInt8[np.ndarray, "h w 3"]
PARAMS = {
    "size_px": 8,
    "num_images": 60,
    "num_training_images": 1000,
    "num_neighbours": 10,
    "quantile": 0.05,
    "max_share": 0.2,
    "num_pictures": 4,
}
COUNTS = {"train": 300, "val": 80, "reworded": 0, "unseen": 0, "held_out": 0}


def params(**changes) -> MemorisationParams:
    return MemorisationParams.model_validate(PARAMS | changes)


def pictures(count: int, seed: int) -> list[Image]:
    """Random fields of colour, 16 x 16 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return list(coarse.repeat(4, 1).repeat(4, 2))


class FakeSamples:
    def __init__(self, images: Sequence[Image], split: str = "val") -> None:
        self.pngs = [encode(image) for image in images]
        self.prompts = [Prompt("a prompt", None, i, split, f"{split}{i}", i) for i in range(len(images))]
        self.guidance_scale = 1.0

    def __len__(self) -> int:
        return len(self.pngs)

    def png(self, i: int) -> bytes:
        return self.pngs[i]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> RealImages:
    folder = tmp_path_factory.mktemp("images")
    for seed, (split, count) in enumerate(COUNTS.items()):
        parts = [(f"{split}{i}", {"webp": encode(image)}) for i, image in enumerate(pictures(count, seed))]
        write(folder / split, parts, 50)
    return RealImages(folder, SPLITS)


def measured(images: Sequence[Image], real: RealImages, split: str = "val", **changes) -> memorisation.Memorisation:
    return memorisation.measure({"seen": FakeSamples(images, split)}, real, params(**changes))


def training(real: RealImages, count: int) -> list[Image]:
    return [decode(real.png(("train", i))) for i in range(count)]


def test_neighbours_are_those_of_a_search_at_once() -> None:
    torch.manual_seed(0)
    queries, others = torch.randn(7, 5).double(), torch.randn(40, 5).double()
    found = memorisation.nearest(queries, others.split(9), 4)
    distances, numbers = torch.cdist(queries, others).topk(4, largest=False)
    assert torch.equal(found.numbers, numbers)
    assert torch.allclose(found.distances, distances)
    assert torch.allclose(found.closeness, distances[:, 0] / distances.mean(1))


def test_a_copy_is_closest_and_an_image_far_from_all_is_not_close() -> None:
    others = torch.eye(4)
    found = memorisation.nearest(torch.stack([others[2], torch.zeros(4)]), [others], 4)
    assert found.closeness.tolist() == [0.0, 1.0]
    assert found.numbers[0, 0] == 2
    repeated = memorisation.nearest(others[:1], [others[[0, 0, 0, 0]]], 4)
    assert repeated.closeness.tolist() == [0.0], "a copy of what training repeats is a copy"


def test_near_copies_of_what_training_repeats_are_found(tmp_path: Path) -> None:
    subject = pictures(10, seed=5)
    for seed, (split, count) in enumerate(COUNTS.items()):
        own = pictures(count, seed) + (subject * 20 if split == "train" else [])
        write(tmp_path / split, [(f"{split}{i}", {"webp": encode(image)}) for i, image in enumerate(own)], 100)
    result = measured([image ^ 3 for image in subject], RealImages(tmp_path, SPLITS))
    assert result.share.value == 1.0 and result.numbers()["num_training"] == COUNTS["train"] + 10


def test_new_images_pass(real) -> None:
    result = measured(pictures(60, seed=7), real)
    result.check("nowhere")
    assert result.share.value <= 0.2
    assert result.closer_than_real == pytest.approx(0.5, abs=3 * (1 / (12 * 60)) ** 0.5 * 2**0.5)


@pytest.mark.parametrize("change", [lambda image: image, lambda image: image // 8 * 8, lambda image: image ^ 3])
def test_copies_fail_the_stage_even_if_a_little_changed(real, change) -> None:
    copies = [change(image) for image in training(real, 20)]
    result = measured(copies + pictures(40, seed=7), real)
    assert 20 / 60 <= result.share.value <= 0.45
    assert set(result.samples.closest[:20]) == set(range(20))
    with pytest.raises(
        RejectedError, match=r"(?s)of 60 samples are closer .* than 95 % of real .*at most 20 %.*look at the picture"
    ):
        result.check("the picture")
    measured(copies, real, max_share=1.0).check("the picture")


def test_copies_are_found_even_if_training_has_some_of_the_real_images(real, tmp_path: Path) -> None:
    for seed, (split, count) in enumerate(COUNTS.items()):
        own = training(real, 20) + pictures(count - 20, seed) if split == "val" else pictures(count, seed)
        write(tmp_path / split, [(f"{split}{i}", {"webp": encode(image)}) for i, image in enumerate(own)], 50)
    result = measured(training(real, 60), RealImages(tmp_path, SPLITS))
    assert (result.real.neighbours.closeness < 1e-6).sum() == 20 and result.share.value == 1.0
    with pytest.raises(RejectedError, match="of 60 samples are closer"):
        result.check("the picture")


def test_a_few_samples_that_are_close_by_chance_do_not_fail_it(real) -> None:
    result = measured([*training(real, 1), *pictures(9, seed=7)], real, max_share=0.1)
    assert result.share.value > 0.1 > result.share.low
    result.check("nowhere")


def test_blurred_images_are_near_all_and_no_copies(real) -> None:
    blurred = [np.full((16, 16, 3), image.mean((0, 1)), np.uint8) for image in pictures(60, seed=7)]
    result = measured(blurred, real)
    nearest = result.samples.neighbours.distances[:, 0].mean()
    assert nearest < result.real.neighbours.distances[:, 0].mean(), "a distance alone would take them for copies"
    assert result.share.value <= 0.1


def test_real_images_are_those_of_prompts_that_no_training_saw_then_others(real) -> None:
    of_prompts = measured(pictures(5, seed=7), real, num_images=6)
    assert of_prompts.real.images[:5] == [real.png(("val", i)) for i in range(5)]
    of_training = measured(pictures(5, seed=7), real, split="train", num_images=6)
    for result in (of_prompts, of_training):
        assert len(set(result.real.images)) == 24
        assert not set(result.real.images) & {real.png(("train", i)) for i in range(COUNTS["train"])}


def test_numbers_say_what_they_are_based_on(real) -> None:
    numbers = measured(pictures(60, seed=7), real, num_training_images=100).numbers()
    assert (numbers["num_samples"], numbers["num_real"], numbers["num_training"]) == (60, 80, 100)
    assert numbers["memorised_share_low"] <= numbers["memorised_share"] <= numbers["memorised_share_high"]


def test_the_picture_shows_the_closest_pairs_of_both_kinds(real) -> None:
    result = measured([*pictures(8, seed=7), *training(real, 1)], real)
    assert result.samples.closest[0] == 8
    picture = np.asarray(result.picture(real))
    first, second = picture[4 : 4 + 128, 4 : 4 + 128], picture[4 : 4 + 128, 4 + 132 : 4 + 132 + 128]
    assert np.array_equal(first, second), "a copy beside its original"
    assert np.array_equal(first[::8, ::8], training(real, 1)[0])


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    for seed, split in enumerate(SPLITS):
        count = 40 if split == "train" else 0
        parts = [(f"{split}{i}", {"webp": encode(image)}) for i, image in enumerate(pictures(count, seed))]
        write(tmp_path / split, parts, 50)
    with pytest.raises(ConfigError, match="0 that no training saw"):
        measured(pictures(2, seed=7), RealImages(tmp_path, SPLITS), split="train")
