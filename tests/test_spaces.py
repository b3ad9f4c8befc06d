"""Feature spaces: those of published numbers are the owners' own, and weights that do not fit are refused."""

import io
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from ldm.core import artifact
from ldm.core.errors import ConfigError, IntegrityError
from ldm.evaluation import metrics, spaces
from ldm.evaluation.params import ClipSpaceParams, InceptionSpaceParams, ShapesSpaceParams
from ldm.oracles import shapes_extractor
from ldm.text import reference_clip

CPU = torch.device("cpu")
ARCHITECTURE = "ViT-S-32-alt"
"""A small one that open_clip has."""


def inception(path: Path) -> spaces.FeatureSpace:
    return spaces.build(InceptionSpaceParams(kind="inception", weights=str(path)), CPU)


def clip(path: Path, **changes: Any) -> spaces.FeatureSpace:
    values = {"kind": "clip", "architecture": ARCHITECTURE, "weights": str(path), "quick_gelu": True}
    return spaces.build(ClipSpaceParams.model_validate(values | changes), CPU)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like that which torch-fidelity downloads, with weights drawn at random."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=empty())
    torch.save(net.state_dict(), path)
    return path


def empty() -> io.BytesIO:
    copy = io.BytesIO()
    torch.save({}, copy)
    copy.seek(0)
    return copy


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


def test_inception_features_are_those_of_torch_fidelity(weights: Path, tmp_path: Path) -> None:
    image = torch.randint(0, 256, (1, 3, 64, 48), dtype=torch.uint8)
    theirs = FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=str(weights))
    space = inception(weights)
    assert (space.name, space.sha256, space.has_cmmd) == ("inception", artifact.sha256_file(weights), False)
    assert torch.equal(space.extract(image), theirs(image)[0])
    artifact.write_tensors(tmp_path / "copy.safetensors", theirs.state_dict())
    assert torch.equal(inception(tmp_path / "copy.safetensors").extract(image), theirs(image)[0])


def test_fid_is_that_of_torch_fidelity() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(300, 32) @ torch.randn(32, 32), torch.randn(200, 32) + 0.3
    both = (fid_features_to_statistics(features) for features in (a, b))
    expected = fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)
    assert torch_fidelity.__version__.startswith("0.4")


def test_cmmd_is_its_definition() -> None:
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(count, 16), dim=1).double() for count in (1500, 40))

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        squares = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
        return torch.exp(-squares / (2 * 10**2))

    expected = 1000 * (kernel(a, a).mean() + kernel(b, b).mean() - 2 * kernel(a, b).mean())
    assert metrics.cmmd(a.float(), b.float()) == pytest.approx(float(expected), rel=1e-3)
    assert metrics.cmmd(a, a) == pytest.approx(0, abs=1e-9)


def test_clip_features_are_those_of_open_clip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = open_clip.create_model(ARCHITECTURE, force_quick_gelu=True).eval()
    path = tmp_path / "open_clip_model.safetensors"
    artifact.write_tensors(path, theirs.state_dict())
    space = clip(path)
    assert (space.name, space.sha256, space.has_cmmd) == ("clip", artifact.sha256_file(path), True)
    size = theirs.visual.image_size
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (theirs.visual.image_mean, theirs.visual.image_std))
    with torch.no_grad():
        expected = theirs.encode_image((image / 255 - mean) / std, normalize=True)
    assert torch.allclose(space.extract(image), expected, atol=1e-5)
    assert not torch.allclose(clip(path, quick_gelu=False).extract(image), expected, atol=1e-5)


def test_clip_warns_where_open_clip_knows_weights_whose_images_are_prepared_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "open_clip_model.safetensors"
    artifact.write_tensors(path, open_clip.create_model(ARCHITECTURE, force_quick_gelu=True).state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip(path)
    tags = {"other": {"quick_gelu": True, "mean": (0.5,) * 3}, "third": {"mean": (0.5,) * 3}, "plain": {}}
    monkeypatch.setattr(open_clip.pretrained, "list_pretrained_tags_by_model", lambda _: list(tags))
    monkeypatch.setattr(open_clip.pretrained, "get_pretrained_cfg", lambda _, tag: tags[tag])
    with pytest.warns(UserWarning, match=rf"safetensors does not say .*are taken, and other of {ARCHITECTURE} need"):
        clip(path)


def test_clip_refuses_other_weights_and_unknown_architectures(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    artifact.write_tensors(path, {"a": torch.zeros(1)})
    with pytest.raises(IntegrityError, match="missing keys"):
        clip(path)
    with pytest.raises(ConfigError, match="architecture ViT-none"):
        clip(path, architecture="ViT-none")
    with pytest.raises(ConfigError, match="quick_gelu: false; expected true, since ViT-B-32-quickgelu"):
        clip(path, architecture="ViT-B-32-quickgelu", quick_gelu=False)
    with pytest.raises(ConfigError, match="architecture ViT-B-16-SigLIP; expected one whose tokenizer is open_clip"):
        clip(path, architecture="ViT-B-16-SigLIP")
    assert reference_clip.build.__doc__
