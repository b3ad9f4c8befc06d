"""Terms of the autoencoder's loss: LPIPS, a discriminator, equivariance, turned hues, and noise on latents."""

import math
from pathlib import Path
from types import SimpleNamespace

import lpips
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import alexnet, squeezenet1_1, vgg

from ldm.autoencoder.model.identity import IdentityAutoencoder
from ldm.autoencoder.model.network import to_signal
from ldm.autoencoder.model.params import IdentityParams
from ldm.autoencoder.training import colours, discriminator, equivariance, latent_noise
from ldm.autoencoder.training.discriminator import HEALTH, PatchDiscriminator, adaptive_weight, adversarial_loss
from ldm.autoencoder.training.loss_params import (
    AdversarialParams,
    EquivarianceParams,
    PerceptualParams,
    ReconstructionParams,
)
from ldm.autoencoder.training.objective import ReconstructionObjective, last_weight
from ldm.autoencoder.training.perceptual import Lpips
from ldm.core.errors import ConfigError, IntegrityError
from tests.test_autoencoder_network import LOSS, autoencoder

ADVERSARIAL = AdversarialParams(
    start_step=0, learning_rate=1e-3, betas=(0.5, 0.9), max_grad_norm=1.0, weight=0.5, channels=8, num_layers=1
)
EQUIVARIANCE = EquivarianceParams(probability=0.5, min_scale=0.25)
FEATURES = {
    "vgg": lambda: vgg.make_layers(vgg.cfgs["D"]),
    "alex": lambda: alexnet().features,
    "squeeze": lambda: squeezenet1_1().features,
}
NAMES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, str]]:
    """Random networks of torchvision, and files of their state dicts."""
    folder, made = tmp_path_factory.mktemp("lpips"), dict[str, tuple[nn.Module, str]]()
    for name, features in FEATURES.items():
        torch.manual_seed(0)
        net = features()
        save_file({f"features.{key}": value for key, value in net.state_dict().items()}, folder / f"{name}.safetensors")
        made[name] = net, str(folder / f"{name}.safetensors")
    return made


def perceptual(backbone: str, weights: str) -> PerceptualParams:
    return PerceptualParams.model_validate({"backbone": backbone, "weights": weights, "weight": 2.0})


def signals(num: int = 2, size: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.rand(2, num, 3, size, size, generator=generator) * 2 - 1
    return first, second


@pytest.mark.parametrize("backbone", FEATURES)
def test_lpips_is_what_the_package_computes_with_the_same_backbone(backbone, backbones, monkeypatch):
    """The package loads the networks of torchvision, which are given to it here in place of a download."""
    net, weights = backbones[backbone]
    ours = Lpips(perceptual(backbone, weights))
    monkeypatch.setattr(lpips.pretrained_networks.tv, NAMES[backbone], lambda pretrained: SimpleNamespace(features=net))
    theirs = lpips.LPIPS(net=backbone, verbose=False)
    x, y = signals()
    x.requires_grad_()
    expected, found = theirs(x, y).flatten(), ours.train()(x, y)
    assert torch.equal(found, expected) and (found > 0).all(), "its dropout is off even in training"
    assert torch.equal(ours(y, y), torch.zeros(2))
    gradients = [torch.autograd.grad(value.sum(), x)[0] for value in (expected, found)]
    assert torch.equal(*gradients) and not any(weight.requires_grad for weight in ours.parameters())


@pytest.mark.parametrize("backbone", ["alex", "squeeze"])
def test_images_may_be_as_small_as_it_says(backbone, backbones):
    ours = Lpips(perceptual(backbone, backbones[backbone][1]))
    ours(*signals(size=ours.min_side_px))
    with pytest.raises(RuntimeError):
        ours(*signals(size=ours.min_side_px - 1))


def test_building_it_draws_no_random_number(backbones):
    torch.manual_seed(0)
    Lpips(perceptual("squeeze", backbones["squeeze"][1]))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_other_weights_are_refused(backbones, tmp_path: Path):
    with pytest.raises(
        IntegrityError, match=r"features\.0\.weight of shape \[64, 3, 3, 3\]; expected weights of torch"
    ):
        Lpips(perceptual("alex", backbones["squeeze"][1]))
    with pytest.raises(IntegrityError, match=r"no tensor features\.3\.weight; .*alexnet"):
        save_file({"features.0.weight": torch.zeros(64, 3, 11, 11), "features.0.bias": torch.zeros(64)}, tmp_path / "a")
        Lpips(perceptual("alex", str(tmp_path / "a")))
    with pytest.raises(IntegrityError, match="no such file"):
        Lpips(perceptual("vgg", str(tmp_path / "vgg16.safetensors")))


@pytest.mark.parametrize(("num_layers", "seen"), [(1, 16), (2, 34), (3, 70)])
def test_a_verdict_sees_as_many_pixels_as_its_params_say(num_layers: int, seen: int):
    net = PatchDiscriminator(ADVERSARIAL.model_copy(update={"num_layers": num_layers}))
    layers = nn.Sequential(*(nn.Identity() if isinstance(layer, nn.GroupNorm) else layer for layer in net.layers))
    x = torch.randn(1, 3, 160, 160, requires_grad=True)
    verdicts = layers(x)
    middle = verdicts.shape[2] // 2
    (gradient,) = torch.autograd.grad(verdicts[0, 0, middle, middle], x)
    rows = gradient.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == seen
    assert net(torch.zeros(1, 3, net.min_side_px, net.min_side_px)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 3, net.min_side_px - 1, net.min_side_px - 1))


def test_one_loss_gives_both_players_their_own_gradients():
    torch.manual_seed(0)
    judge, x = PatchDiscriminator(ADVERSARIAL), torch.randn(4, 3, 16, 16)
    decoder = nn.Conv2d(3, 3, 3, padding=1)
    target = x.roll(1, 0)

    def distortion(made: Tensor) -> Tensor:
        return (made - target).abs().mean()

    made = decoder(x)
    added, health = adversarial_loss(judge, 0.5, distortion(made), made, target, decoder.weight)
    (distortion(made) + added).backward()
    found = [weight.grad.clone() for weight in (*decoder.parameters(), *judge.parameters())]

    made = decoder(x)
    norms = [
        torch.autograd.grad(loss, decoder.weight, retain_graph=True)[0].norm()
        for loss in (distortion(made), -judge(made).mean())
    ]
    factor = 0.5 * norms[0] / norms[1]
    own = torch.autograd.grad(distortion(made) - factor.detach() * judge(made).mean(), list(decoder.parameters()))
    real, fake = judge(target), judge(made.detach())
    hinge = (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()) / 2
    theirs = torch.autograd.grad(hinge, list(judge.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, (*own, *theirs), strict=True))
    assert added.item() == pytest.approx(-(factor * judge(made).mean()).item(), rel=1e-5), "the decoder's loss alone"
    expected = dict(zip(HEALTH, (-fake.mean(), factor, hinge, real.mean(), fake.mean()), strict=True))
    assert {name: value.item() for name, value in health.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5
    )


def test_passes_train_the_discriminator_alike_and_the_decoder_only_nearly():
    """The factor is that of the rows of a pass, so two passes are not one; it is as the documents say."""
    torch.manual_seed(0)
    judge, x = PatchDiscriminator(ADVERSARIAL), torch.randn(4, 3, 16, 16) * torch.tensor([1, 1, 3, 3]).view(4, 1, 1, 1)
    decoder = nn.Conv2d(3, 3, 3, padding=1)
    players = nn.ModuleList([decoder, judge])

    def gradients(num_passes: int) -> tuple[Tensor, Tensor]:
        players.zero_grad()
        for rows in x.chunk(num_passes):
            made = decoder(rows)
            distortion = (made - rows).abs().mean()
            added, _ = adversarial_loss(judge, 0.5, distortion, made, rows, decoder.weight)
            ((distortion + added) / num_passes).backward()
        return tuple(torch.cat([w.grad.flatten() for w in each.parameters()]) for each in players)  # pyright: ignore

    (decoder_once, judge_once), (decoder_twice, judge_twice) = gradients(1), gradients(2)
    torch.testing.assert_close(judge_twice, judge_once, rtol=1e-4, atol=1e-6)
    assert 1e-3 < (decoder_twice - decoder_once).norm() / decoder_once.norm() < 0.5


def test_the_adaptive_weight_is_a_ratio_of_norms_with_a_limit():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert adaptive_weight((3 * x).sum(), (2 * x).sum(), x).item() == pytest.approx(1.5)
    assert adaptive_weight((3 * x).sum(), (0 * x).sum(), x).item() == 1e4


def test_a_discriminator_that_learns_tells_both_apart_and_its_health_shows_it():
    torch.manual_seed(0)
    judge = PatchDiscriminator(ADVERSARIAL)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3)
    real = torch.randn(8, 3, 16, 16)
    smooth = nn.functional.avg_pool2d(real, 3, 1, 1)
    for step in range(60):
        made = smooth.clone().requires_grad_()
        added, health = adversarial_loss(judge, 1.0, (made - real).abs().mean(), made, real, made)
        if step == 0:
            assert 0.8 < health["discriminator"] < 1.2
        optimizer.zero_grad()
        added.backward()
        optimizer.step()
    assert health["discriminator"] < 0.3 and health["logits_real"] > 0.7 and health["logits_fake"] < -0.7


def test_before_its_start_a_discriminator_changes_nothing_and_gets_zeros():
    judge = PatchDiscriminator(ADVERSARIAL)
    added, health = discriminator.absent(judge)
    added.backward()
    assert added == 0 and health.keys() == set(HEALTH) and not any(value.item() for value in health.values())
    assert all(weight.grad is not None and not weight.grad.any() for weight in judge.parameters())


def objective(**changes: object) -> ReconstructionObjective:
    return ReconstructionObjective(autoencoder(), ReconstructionParams.model_validate(LOSS | changes))


def batch(size: int = 24) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, size, size), generator=generator).to(torch.uint8)
    return {"image": image, "noise": torch.randn(2, 4, size // 2, size // 2, generator=generator)}


def test_terms_add_up(backbones):
    """Seeds give equal networks, so that the plain loss is a part of the full one."""
    plain = objective()(batch())
    weighted = perceptual("squeeze", backbones["squeeze"][1])
    full = objective(perceptual=weighted, adversarial=ADVERSARIAL)
    given = batch()
    early, late = full(given), full(given | {"adversarial": torch.ones(2)})
    assert early["l1"] == plain["l1"] and early["kl"] == plain["kl"]
    assert early["loss"].item() == pytest.approx((plain["loss"] + 2 * early["lpips"]).item(), rel=1e-6)
    added = late["adversarial_weight"] * late["adversarial"]
    assert late["loss"].item() == pytest.approx((early["loss"] + added).item(), rel=1e-5) and added != 0
    assert early.keys() == late.keys()
    with torch.no_grad():
        assert full.eval()(given | {"adversarial": torch.ones(2)}).keys() == early.keys() - set(HEALTH)
    assert full.inputs == {"lpips": full.perceptual.sha256} and objective().inputs == {}


def test_the_last_weight_makes_the_pixels():
    """A change of it changes what is decoded by a linear function of the change; no other kernel's does."""
    model, z = autoencoder(), torch.randn(1, 4, 4, 4)
    weight = last_weight(model)
    assert weight is model.decoder.conv_out.weight
    with torch.no_grad():
        bias = model.decoder.conv_out.bias[:, None, None]
        before = model.decode(z) - bias
        weight.mul_(3)
        assert torch.allclose(model.decode(z) - bias, 3 * before, atol=1e-5)


def test_a_loss_that_is_not_finite_in_one_player_is_not_finite():
    full = objective(adversarial=ADVERSARIAL)
    with torch.no_grad():
        full.adversary.layers[0].weight[0, 0, 0, 0] = torch.nan
    assert full(batch() | {"adversarial": torch.ones(2)})["loss"].isnan()


def test_images_that_become_too_small_are_refused(backbones):
    full = objective(
        perceptual=perceptual("squeeze", backbones["squeeze"][1]), adversarial=ADVERSARIAL, equivariance=EQUIVARIANCE
    )
    full.check_sizes([(36, 36), (64, 36)])
    with pytest.raises(ConfigError, match=r"perceptual: images of 8 px; expected at least 17 px\nfix: raise equi"):
        full.check_sizes([(36, 36), (64, 16)])
    edges = objective(gradient_weight=1.0, num_gradient_scales=3, equivariance=EQUIVARIANCE)
    edges.check_sizes([(16, 16)])
    with pytest.raises(
        ConfigError, match=r"num_gradient_scales: images of 4 px; expected at least 8 px\n.*or lower it"
    ):
        edges.check_sizes([(8, 8)])


def test_turned_samples_are_those_of_torch_and_gradients_come_back():
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    found = equivariance.turned(x, torch.arange(4))
    expected = torch.stack([torch.rot90(each, k, (1, 2)) for k, each in enumerate(x)])
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad((found * expected.detach()).sum(), x)
    assert torch.equal(gradient, x.detach())
    wide = torch.randn(2, 1, 2, 5)
    assert torch.equal(equivariance.turned(wide, torch.tensor([0, 2]))[1], wide[1].flip(1, 2))


@pytest.mark.parametrize("size", [(5, 7), (3, 2), (16, 11)])
def test_resizing_is_torch_s_own(size: tuple[int, int]):
    x = torch.randn(2, 3, 16, 11, dtype=torch.float32)
    expected = nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    assert torch.allclose(equivariance.resized(x, torch.Size(size)), expected, atol=1e-6)


def test_what_a_step_draws():
    draws = [equivariance.draw(EQUIVARIANCE, (16, 16), 8, 0, step) for step in range(2000)]
    on = [drawn for drawn in draws if drawn is not None]
    assert abs(len(on) / 2000 - 0.5) < 0.04
    sides = torch.tensor([size[0] for size, _ in on])
    assert all(size[0] == size[1] for size, _ in on) and set(sides.tolist()) == set(range(4, 17))
    assert sides.float().mean().item() == pytest.approx(10, abs=0.4)
    counts = torch.bincount(torch.cat([turns for _, turns in on]), minlength=4)
    assert len(counts) == 4 and (counts / counts.sum() - 0.25).abs().max() < 0.03
    again = equivariance.draw(EQUIVARIANCE, (16, 16), 8, 0, 7)
    assert (again is None) == (draws[7] is None)
    wide = [equivariance.draw(EQUIVARIANCE, (16, 8), 8, 0, step) for step in range(200)]
    assert {int(turn) for drawn in wide if drawn for turn in drawn[1]} == {0, 2}


def test_hues_turn_about_the_greys():
    x = (torch.rand(4, 3, 5, 5) - 0.5) / 2
    third = 2 * math.pi / 3
    found = colours.turned(x, torch.tensor([0.0, third, 2 * third, 0.7]))
    assert torch.allclose(found[0], x[0], atol=1e-6)
    assert torch.allclose(found[1], x[1].roll(1, 0), atol=1e-6), "red becomes green, green blue, and blue red"
    assert torch.allclose(found[2], x[2].roll(2, 0), atol=1e-6)
    assert torch.allclose(found.mean(1), x.mean(1), atol=1e-6) and torch.allclose(found.norm(dim=1), x.norm(dim=1))
    there_and_back = colours.turned(colours.turned(x, torch.full((4,), 0.7)), torch.full((4,), -0.7))
    assert torch.allclose(there_and_back, x, atol=1e-6)
    grey = torch.linspace(-1, 1, 5).expand(1, 3, 1, 5)
    assert torch.allclose(colours.turned(grey, torch.tensor([1.2])), grey, atol=1e-6)
    assert colours.turned(torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1), torch.tensor([math.pi])).abs().max() <= 1


def test_a_share_of_the_hues_is_turned():
    angles = torch.cat([colours.draw(0.25, 8, 0, step) for step in range(1000)])
    on = angles[angles != 0]
    assert abs(len(on) / 8000 - 0.25) < 0.02 and on.min() > 0 and on.max() < 2 * math.pi
    assert on.mean().item() == pytest.approx(math.pi, abs=0.2)
    assert torch.equal(colours.draw(0.25, 8, 0, 7), angles[56:64]) and not colours.draw(0.0, 8, 0, 7).any()


def test_an_image_in_other_colours_is_to_be_reconstructed_in_them():
    """Pixels that are their own latents are right in any colour; beside the image as it was they would not be."""
    given = batch()
    pixels = ReconstructionObjective(
        IdentityAutoencoder(IdentityParams(kind="identity", latent_channels=3)),
        ReconstructionParams.model_validate(LOSS),
    )
    hues = torch.tensor([0.0, 2.0])
    found = pixels({"image": given["image"], "noise": torch.zeros(2, 3, *given["image"].shape[2:]), "hues": hues})
    assert found["l1"] < 1e-6
    model = objective()
    plain, turned = (model(given | added)["mse"] for added in ({}, {"hues": hues}))
    assert plain != turned


def test_noise_on_latents_has_another_deviation_for_each_image():
    shape, limit = (4, 8, 8), 0.5
    noise = torch.cat([latent_noise.draw(limit, slice(0, 8), 8, shape, 0, step) for step in range(100)])
    deviations = noise.flatten(1).std(1)
    assert deviations.max() < limit * 1.15 and deviations.mean().item() == pytest.approx(limit / 2, rel=0.1)
    quarters = torch.histc(deviations, 4, 0, limit) / 800
    assert (quarters - 0.25).abs().max() < 0.06 and noise.mean().abs() < 0.01
    assert (deviations.view(100, 8).std(1) > 0.02).all() and not torch.equal(noise[:8], noise[8:16])
    parts = [latent_noise.draw(limit, rows, 8, shape, 0, 3) for rows in (slice(0, 3), slice(3, 8))]
    assert torch.equal(torch.cat(parts), noise[24:32])


def test_noise_on_latents_is_added_to_what_is_decoded_and_to_nothing_else():
    model, given = objective(), batch()
    noise = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(2))
    plain, noisy = model(given), model(given | {"latent_noise": noise})
    sample = model.autoencoder.encode(to_signal(given["image"])).sample(given["noise"])
    error = model.autoencoder.decode(sample + noise) - to_signal(given["image"])
    assert noisy["mse"].item() == pytest.approx(error.square().mean().item(), rel=1e-5) != plain["mse"].item()
    assert torch.equal(noisy["kl"], plain["kl"])
    turns = torch.tensor([1, 2])
    found = model(given | {"latent_noise": noise, "turns": turns})["mse"]
    error = model.autoencoder.decode(equivariance.turned(sample + noise, turns))
    error = error - equivariance.turned(to_signal(given["image"]), turns)
    assert found.item() == pytest.approx(error.square().mean().item(), rel=1e-5)


def test_pixels_are_equivariant_and_a_trained_network_is_not():
    """The loss of scaled and turned latents is zero if these are the pixels themselves."""
    given = batch(16)
    noise, turns = torch.zeros(2, 3, 6, 6), torch.tensor([1, 2])
    params = ReconstructionParams.model_validate(LOSS | {"equivariance": EQUIVARIANCE})
    pixels = ReconstructionObjective(IdentityAutoencoder(IdentityParams(kind="identity", latent_channels=3)), params)
    assert pixels({"image": given["image"], "noise": noise, "turns": turns})["l1"] < 1e-6
    usual = ReconstructionObjective(autoencoder(), params)
    found = usual({"image": given["image"], "noise": torch.zeros(2, 4, 3, 3), "turns": turns})
    assert found["l1"] > 0.1
    # The same by hand: the decoder sees the turned, smaller latents, and is compared with turned, smaller images.
    posterior = usual.autoencoder.encode(to_signal(given["image"]))
    z = equivariance.turned(equivariance.resized(posterior.mean, torch.Size((3, 3))), turns)
    target = equivariance.turned(equivariance.resized(to_signal(given["image"]), torch.Size((6, 6))), turns)
    assert found["l1"].item() == pytest.approx((usual.autoencoder.decode(z) - target).abs().mean().item(), rel=1e-6)
