"""The ten pictures of the docs' subject: of one drawing, each in another pose, and none in the corpus."""

from pathlib import Path

import numpy as np

from docs import subject
from ldm.core import images
from ldm.corpora import openmoji
from ldm.tools.recipe import Recipe
from tests.import_closure import ROOT


def test_ten_pictures_show_one_drawing_in_ten_poses(tmp_path: Path) -> None:
    subject.draw(tmp_path)
    pictures = [images.decode((tmp_path / f"{number}.png").read_bytes()) for number in range(10)]
    assert len(list(tmp_path.iterdir())) == 10 and {picture.shape for picture in pictures} == {(256, 256, 3)}
    # Painted pixels grow with the square of the size; corners stay white.
    shares = [float((picture < 250).any(-1).mean()) for picture in pictures]
    for share, (_, size, _) in zip(shares, subject.POSES, strict=True):
        assert abs(share / (shares[0] * size**2) - 1) < 0.05
    assert all((picture[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all() for picture in pictures)
    # What is mirrored and smaller is the first picture, mirrored and smaller.
    head = [np.argwhere((picture == (226, 112, 34)).all(-1))[:, 1].mean() for picture in pictures[:2]]
    assert head[0] > 128 > head[1] and abs((head[0] - 128) * 0.8 - (128 - head[1])) < 2


def test_the_recipe_teaches_a_drawing_that_is_in_no_corpus() -> None:
    assert not openmoji.captions([subject.DRAWING])
    parts = Recipe("dreambooth", ROOT).data["prepare"]["corpus"]["parts"]
    assert parts["subject"]["caption"] == subject.SUBJECT and parts["subject"]["corpus"]["directory"] == "subject"
