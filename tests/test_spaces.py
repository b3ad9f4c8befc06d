"""Feature spaces: what they are named after, and weights that do not fit."""

from pathlib import Path

import pytest
import torch

from ldm.core import artifact
from ldm.core.errors import IntegrityError
from ldm.evaluation import spaces
from ldm.evaluation.params import InceptionSpaceParams, ShapesSpaceParams
from ldm.oracles import shapes_extractor

CPU = torch.device("cpu")


def inception(path: Path) -> spaces.FeatureSpace:
    return spaces.build(InceptionSpaceParams(kind="inception", weights=str(path)), CPU)


def test_the_space_of_the_shapes_is_that_of_their_extractor() -> None:
    space = spaces.build(ShapesSpaceParams(kind="shapes"), CPU)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert (space.name, space.sha256) == ("shapes", shapes_extractor.WEIGHTS_SHA256)
    assert torch.equal(space.extract(image), shapes_extractor.load()(image))


def test_inception_refuses_other_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(IntegrityError, match="no such file"):
        inception(path)
    artifact.write_tensors(path, {"a": torch.zeros(1)})
    with pytest.raises(IntegrityError, match="other tensors"):
        inception(path)


def test_inception_features_are_those_of_torchvision(tmp_path: Path) -> None:
    from torchvision.models import Inception3

    torch.manual_seed(0)
    net = Inception3(num_classes=10, aux_logits=True, transform_input=False, init_weights=False).eval()
    path = tmp_path / "weights.safetensors"
    artifact.write_tensors(path, net.state_dict())
    space = inception(path)
    image = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    with torch.no_grad():
        expected = net(image / 127.5 - 1)
        found = net.fc(space.extract(image))
    assert (space.name, space.sha256) == ("inception", artifact.sha256_file(path))
    assert torch.allclose(found, expected, atol=1e-5)
