"""The benchmark of an autoencoder's loss on photographs, as far as it needs none: its params and its crops."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import photographs
from ldm.autoencoder.model.networks import build
from ldm.autoencoder.training.params import TrainedAutoencoderParams


@pytest.mark.parametrize("variant", photographs.VARIANTS)
@pytest.mark.parametrize("small", [True, False])
def test_a_variant_has_its_terms_and_no_others(variant: str, small: bool) -> None:
    section = photographs.params(variant, Path("models"), 100, small)
    assert isinstance(section, TrainedAutoencoderParams) and section.reconstruction is not None
    error, lpips, gan, is_equivariant = photographs.VARIANTS[variant]
    reconstruction = section.reconstruction
    assert reconstruction.error == error
    assert (reconstruction.perceptual is not None, reconstruction.adversarial is not None) == (lpips > 0, gan > 0)
    assert (reconstruction.equivariance is not None) == is_equivariant
    if reconstruction.perceptual is not None:
        assert reconstruction.perceptual.weight == lpips
        assert "vgg16" in reconstruction.perceptual.weights  # metrics see other networks
    assert build(section.network).factor == 8


def test_variants_differ_in_the_loss_alone() -> None:
    sections = [photographs.params(variant, Path("models"), 100, False) for variant in photographs.VARIANTS]
    assert len({(str(section.network), str(section.training)) for section in sections}) == 1


def test_a_crop_belongs_to_its_number() -> None:
    photos = [np.random.default_rng(i).integers(256, size=(40, 50, 3), dtype=np.uint8) for i in range(3)]
    one, other = (photographs.Crops(photos, 16, 100, seed) for seed in (0, 1))
    assert one.images([7, 3]).equal(photographs.Crops(photos, 16, 100, 0).images([7, 3]))
    assert not one.images([7]).equal(other.images([7])) and one.images([0]).shape == (1, 3, 16, 16)


def test_three_of_five_photographs_are_trained_on() -> None:
    counts = [[photographs.split_of(i) for i in range(40)].count(split) for split in photographs.SPLITS]
    assert counts == [24, 8, 8]
