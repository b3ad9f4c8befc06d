"""The fixed extractor: the weights that were stated, right on fresh scenes, and distances that grow with damage."""

import random
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from ldm.core import artifact
from ldm.core.errors import IntegrityError
from ldm.corpora import shapes_scenes
from ldm.corpora import shapes_vocabulary as vocabulary
from ldm.evaluation import metrics
from ldm.oracles import shapes_extractor as design
from studies import outlines
from studies import shapes_extractor as study
from tests.corpora import shapes_params

NUM_IMAGES = 500


@lru_cache
def _scenes(first: int) -> list[shapes_scenes.Scene]:
    rng = random.Random(f"fresh/{first}")
    counts = rng.choices((1, 2), (0.35, 0.65), k=NUM_IMAGES)
    return [outlines.random_scene(rng, vocabulary.SHAPES, tuple(vocabulary.RADII), count) for count in counts]


@lru_cache
def _images(first: int, deformation: str = "as it is", size_px: int = 64) -> torch.Tensor:
    rng, deform = random.Random(0), outlines.DEFORMATIONS[deformation][1]
    return study.stacked([outlines.render(scene, size_px, deform, rng) for scene in _scenes(first)])


@lru_cache
def _features_of_renders() -> torch.Tensor:
    return design.load()(_images(0))


def _distance(image: torch.Tensor) -> float:
    return metrics.frechet_distance(_features_of_renders(), design.load()(image))


def _blurred(image: torch.Tensor, deviation: float) -> torch.Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(image.numpy(), (0, 0, deviation, deviation)))


def _noisy(image: torch.Tensor, deviation: float) -> torch.Tensor:
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return torch.from_numpy((image.numpy() + noise).round().clip(0, 255).astype(np.uint8))


def test_the_committed_weights_are_small_and_those_that_were_stated(tmp_path, monkeypatch) -> None:
    assert artifact.sha256_file(design.WEIGHTS) == design.WEIGHTS_SHA256
    assert design.WEIGHTS.stat().st_size < 1_000_000
    other = tmp_path / "other.safetensors"
    other.write_bytes(design.WEIGHTS.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(design, "WEIGHTS", other)
    with pytest.raises(IntegrityError, match="SHA-256"):
        design.load()


def test_fresh_scenes_are_read_right() -> None:
    found = study.accuracy(design.load(), _scenes(0), _images(0))
    assert min(found[kind] for kind in ("layout", "background", "colour", "shape", "size")) >= 0.98


def test_unseen_compositions_are_read_as_well_as_any() -> None:
    scenes = study.corpus_scenes("held_out", NUM_IMAGES, shapes_params(1, 1, NUM_IMAGES))
    found = study.accuracy(design.load(), scenes, study.stacked([shapes_scenes.render(scene, 64) for scene in scenes]))
    assert found["scene"] >= 0.97


def test_images_of_other_sizes_are_read_too() -> None:
    large = _images(0, size_px=128)
    assert design.load()(large).shape == (NUM_IMAGES, design.NUM_FEATURES)
    assert study.accuracy(design.load(), _scenes(0), large)["scene"] >= 0.98


def test_two_sets_of_renders_lie_close_together() -> None:
    variance = _features_of_renders().var(0).sum().item()
    assert _distance(_images(1)) < 0.05 * variance


@pytest.mark.parametrize(("damage", "amounts"), [(_blurred, (0.5, 0.8, 1.2)), (_noisy, (4, 10, 25))])
def test_distances_grow_with_damage(damage, amounts) -> None:
    of_others = [_distance(_images(1)), *(_distance(damage(_images(1), amount)) for amount in amounts)]
    assert of_others == sorted(of_others)
    assert of_others[-1] > 2 * of_others[0]
    of_the_same = [_distance(damage(_images(0), amount)) for amount in amounts]
    assert of_the_same[1] > 2 * of_the_same[0] and of_the_same[2] > 2 * of_the_same[1]


def test_distances_grow_with_deformation() -> None:
    names = [f"wobble of {percent} % of the radius" for percent in (5, 10)]
    little, more = (_distance(_images(0, name)) for name in names)
    assert more > 2 * little > 0
    assert _distance(_images(1)) < _distance(_images(1, names[0])) < _distance(_images(1, names[1]))


def test_the_same_seed_trains_the_same_way(monkeypatch) -> None:
    monkeypatch.setattr(study, "BATCH_SIZE", 8)
    first, again, other = (study.train(24, 4, seed)[1] for seed in (0, 0, 1))
    assert first == again
    assert first != other
