"""The noise-aware classifier: it learns Bayes' rule at every noise, its training writes an artefact, and the artefact
guides."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.analytic.mixture import Mixture
from ldm.autoencoder.encoding.latents import KIND as LATENTS
from ldm.core import artifact, config
from ldm.core.errors import ConfigError
from ldm.core.params import PathsParams
from ldm.denoiser.model.diffusion import Schedule
from ldm.precompute.cache import CacheWriter
from ldm.sampling.guidance import classifier, models
from ldm.sampling.guidance.params import NoisyClassifierParams
from ldm.sampling.origin import Origin
from ldm.text.model.captions import Captions
from ldm.tools import cli, pipeline
from studies import classifier as training
from tests import trained_data
from tests.kinds import KINDS

FLOW = Schedule("flow")
DATA = Mixture.of([0.25, 0.75], [[-1.0] * 4, [1.0] * 4], [torch.eye(4).tolist()] * 2)
"""Latents of 1 x 2 x 2 with two captions, the second three times as frequent."""
CPU = torch.device("cpu")
SETTINGS = {"guidance": {"kind": "classifier", "directory": "data/classifier"}, "guidance_scale": 2}


def exact(z: Tensor, t: Tensor, label: int) -> Tensor:
    return DATA.noisy(1 - float(t[0]), float(t[0])).classify(z.double().flatten(1))[:, label].float()


def pairs(num: int, seed: int, weights: Tensor = DATA.weights) -> training.Pairs:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(weights, num, replacement=True, generator=generator)
    latents = DATA.means[labels] + torch.randn(num, 4, dtype=torch.float64, generator=generator)
    mean = latents.reshape(num, 1, 2, 2).float()
    return training.Pairs(mean, torch.zeros_like(mean), torch.eye(2)[labels])


def test_it_learns_bayes_rule_and_leads_as_the_exact_classifier_does():
    params = NoisyClassifierParams(
        latent_channels=1, latent_size=2, channels=[16], norm_groups=4, num_features=2, num_references=4000
    )
    net = training.train(pairs(20_000, 0), params, FLOW, 400)
    for time in (0.2, 0.5, 0.8):
        z = pairs(400, 1).noisy(torch.arange(400), torch.full((400,), time), FLOW)
        t, reads = torch.full((400,), time), [net.log_probability(row.expand(400, 2), FLOW) for row in torch.eye(2)]
        # Up to a constant that does not depend on z, which the prior of the caption is.
        ratio = (reads[1](z, t) - reads[0](z, t)).add(torch.tensor(3.0).log()).sigmoid()
        assert float((ratio - exact(z, t, 1)).abs().mean()) < 0.05
        normal = (reads[1](z, t).exp() * 0.75 + reads[0](z, t).exp() * 0.25) * 4000
        torch.testing.assert_close(normal, torch.ones(400), rtol=0.05, atol=0.05)
        undecided = (exact(z, t, 1) - 0.5).abs() < 0.45  # where it is certain, the gradient is of a rare case
        moved, other = z.clone().requires_grad_(), z.clone().requires_grad_()
        (found,) = torch.autograd.grad(reads[0](moved, t).sum(), moved)
        (expected,) = torch.autograd.grad(exact(other, t, 0).log().sum(), other)
        error = (found - expected)[undecided].square().mean() / expected[undecided].square().mean()
        assert int(undecided.sum()) >= 20 and float(error) < 0.25
    measured = training.accuracies(net, pairs(2000, 2, torch.ones(2)), FLOW)
    assert list(measured) == list(training.QUARTERS)
    for numbers in measured.values():
        assert numbers["accuracy"] > numbers["chance"] + 4 * numbers["error"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefacts that fit each other, with latents for every caption, and a classifier that was trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained_data.make(folder)
        of = artifact.read_passport(Path("data/unet"), KINDS["unet"])
        for split in ("train", "val"):
            writer, count = (
                CacheWriter(Path("data/latents") / split, LATENTS),
                len(Captions(Path("data/captions") / split)),
            )
            rows = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(count))
            writer.write_shard(0, {"mean": rows, "log_variance": torch.full_like(rows, -4)})
            writer.finish(1, {}, {"autoencoder": of.inputs["autoencoder"]}, {"latent_scale": of.facts["latent_scale"]})
        paths = config.read(PathsParams, "paths")
        training.run(Path("data/classifier"), paths, channels=(8, 8), num_steps=3, num_references=4)
    return folder


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    return root


def test_training_writes_an_artefact_with_its_accuracies(here: Path):
    net, passport = classifier.load(Path("data/classifier"), CPU)
    assert (
        passport.inputs["latents_train"] == artifact.read_passport(Path("data/latents/train"), LATENTS).content_sha256
    )
    assert passport.config["schedule"] == "flow" and net.references.shape == (4, 8)
    metrics = json.loads(Path("data/classifier/metrics.json").read_text())
    assert set(metrics) == set(training.QUARTERS)
    assert all(0 <= numbers["accuracy"] <= 1 and 0 < numbers["chance"] < 0.5 for numbers in metrics.values())


def test_it_guides_from_python_and_from_the_command_line_and_is_replayed(here: Path):
    loaded = pipeline.Pipeline.load(here)
    empty = loaded(["", ""], guidance_scale=1)
    assert torch.equal(loaded(["a red star", "a star"], **SETTINGS | {"guidance_scale": 0}), empty)
    assert not torch.equal(loaded(["a red star", "a star"], **SETTINGS | {"guidance_scale": 50}), empty)
    options = ["--guidance", "classifier,directory=data/classifier", "--guidance-scale", "50"]
    assert cli.main(["generate", "a red star", "--output", "out", *options]) == 0
    origin = Origin.read(Path("out/0000.png").read_bytes(), "out")
    _, passport = classifier.load(Path("data/classifier"), CPU)
    assert origin.models["guidance"] == passport.content_sha256
    assert cli.main(["replay", "out/0000.png"]) == 0


def test_it_guides_images_of_its_own_size_alone(here: Path):
    loaded = pipeline.Pipeline.load(here)
    refusal = (
        "size_px: 64 x 128; expected 64 x 64, the only size of the model that guides\nfix: leave it null, or take "
    )
    with pytest.raises(ConfigError, match=f"^{refusal}guidance classifier_free"):
        loaded("a star", **SETTINGS, size_px=(64, 128))
    assert loaded("a star", **SETTINGS, size_px=(64, 64)).shape == (1, 3, 64, 64)
    assert loaded("a star", **SETTINGS | {"guidance_scale": 0}, size_px=(64, 128)).shape == (1, 3, 64, 128)


def test_one_that_does_not_fit_and_a_model_without_dropped_captions_are_refused(here: Path, tmp_path: Path):
    loaded = pipeline.Pipeline.load(here)
    net, passport = classifier.load(Path("data/classifier"), CPU)
    settings = {**passport.config, "schedule": "linear"}
    artifact.write(tmp_path / "other", classifier.KIND, settings, net.state_dict(), passport.inputs, passport.facts)
    generator = loaded.generator
    ours = models.traits_of(generator.schedule, generator.unet.latent_shape, generator.passport)
    with pytest.raises(
        ConfigError, match=r"^guidance.directory: .*/other has schedule linear; expected schedule flow, "
    ):
        models.load_classifier(tmp_path / "other", ours, generator.directory, CPU)
    generator.passport.facts["caption_dropout"] = 0
    with pytest.raises(
        ConfigError, match=r"^guidance_scale: 2, .* expected 1 with guidance classifier_free: trained with"
    ):
        loaded("a star", **SETTINGS)
