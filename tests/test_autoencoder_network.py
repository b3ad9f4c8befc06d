import math

import diffusers
import pytest
import torch

from ldm.autoencoder.model import networks
from ldm.autoencoder.model.kl import KLAutoencoder
from ldm.autoencoder.model.network import Posterior, to_image, to_signal
from ldm.autoencoder.model.params import KLAutoencoderParams
from ldm.autoencoder.training.loss_params import ReconstructionParams
from ldm.autoencoder.training.objective import ReconstructionObjective, gradient_error
from ldm.compute import attention
from ldm.core import artifact
from tests.agreement import assert_gradients_agree, assert_outputs_agree, randomise

TINY = {
    "kind": "kl",
    "patch_px": 1,
    "channels": [8, 16],
    "num_res_blocks": 1,
    "latent_channels": 4,
    "middle_attention": True,
    "quant_conv": True,
    "norm_groups": 4,
}
LOSS = {
    "error": "l1",
    "kl_weight": 0.0,
    "learned_log_variance": False,
    "gradient_weight": 0.0,
    "num_gradient_scales": 2,
    "perceptual": None,
    "adversarial": None,
    "equivariance": None,
    "turned_colours": 0.0,
    "latent_noise": 0.0,
}
# Stable Diffusion 1's own config at a quarter of its width; three channels and three levels; no attention, one level.
TOPOLOGIES = [
    ({"channels": [32, 64, 128, 128], "num_res_blocks": 2, "norm_groups": 32}, (2, 32, 48)),
    ({"channels": [16, 24, 32], "latent_channels": 3, "norm_groups": 8}, (1, 40, 24)),
    ({"channels": [16], "middle_attention": False}, (2, 8, 8)),
    ({"channels": [16, 32], "latent_channels": 16, "quant_conv": False}, (2, 8, 8)),
]


def autoencoder(**changes) -> KLAutoencoder:
    torch.manual_seed(0)
    return KLAutoencoder(KLAutoencoderParams.model_validate(TINY | changes))


@pytest.mark.parametrize("version", [1, 2])
def test_an_autoencoder_of_any_format_opens_as_what_was_written(tmp_path, version):
    written, former = autoencoder(), {name: value for name, value in TINY.items() if name != "kind"}
    kind = artifact.Kind("autoencoder", networks.KIND.upgrades[: version - 1])
    artifact.write(tmp_path, kind, {1: former, 2: TINY}[version], written.state_dict(), {}, {})
    found, passport = networks.load(tmp_path, torch.device("cpu"))
    assert passport.format_version == version and passport.config == TINY
    assert isinstance(found, KLAutoencoder) and not any(parameter.requires_grad for parameter in found.parameters())
    assert all(torch.equal(a, b) for a, b in zip(written.parameters(), found.parameters(), strict=True))


def theirs(params: KLAutoencoderParams) -> diffusers.AutoencoderKL:
    num_levels = len(params.channels)
    return diffusers.AutoencoderKL(
        block_out_channels=tuple(params.channels),
        layers_per_block=params.num_res_blocks,
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        latent_channels=params.latent_channels,
        norm_num_groups=params.norm_groups,
        mid_block_add_attention=params.middle_attention,
        use_quant_conv=params.quant_conv,
        use_post_quant_conv=params.quant_conv,
    )


def objective(**changes) -> ReconstructionObjective:
    return ReconstructionObjective(autoencoder(), ReconstructionParams.model_validate(LOSS | changes))


def batch(size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, size, size), generator=generator).to(torch.uint8)
    return {"image": image, "noise": torch.randn((2, 4, size // 2, size // 2), generator=generator)}


@pytest.mark.parametrize("middle_attention", [True, False])
def test_the_attention_that_it_says_it_needs_is_what_it_asks_for(middle_attention, monkeypatch):
    model, asked = autoencoder(middle_attention=middle_attention), []
    monkeypatch.setattr(attention, "_selected", lambda q, k, v, mask: asked.append((q, k)) or attention.sdpa(q, k, v))
    model.decode(model.encode(torch.zeros(1, 3, 12, 12)).mode())
    shapes = {attention.Shape(q.shape[2], k.shape[2], q.shape[3]) for q, k in asked}
    assert shapes == set(model.attention_shapes(6, 6)) == ({(36, 36, 16)} if middle_attention else set())


@pytest.mark.parametrize("backend", ["math", "sdpa"])
@pytest.mark.parametrize(("changes", "shape"), TOPOLOGIES)
def test_equal_weights_give_the_values_and_gradients_of_diffusers(changes, shape, backend):
    attention.select(backend, torch.device("cpu"))
    params = KLAutoencoderParams.model_validate(TINY | changes)
    b, h, w = shape
    ours, reference = KLAutoencoder(params), theirs(params)
    randomise(reference)
    ours.load_state_dict(reference.state_dict(), strict=True)
    torch.manual_seed(0)
    x = torch.randn(b, 3, h, w)
    noise = torch.randn(b, params.latent_channels, h // params.factor, w // params.factor)

    def run(encode, decode, model):
        signal = x.clone().requires_grad_()
        mean, log_variance, kl = encode(signal)
        z = mean + torch.exp(0.5 * log_variance) * noise
        out = decode(z)
        (out.square().mean() + 0.01 * kl.mean() + (log_variance * noise).mean()).backward()
        return [mean, log_variance, kl, out], {"x": signal.grad} | {n: p.grad for n, p in model.named_parameters()}

    def encode_ours(signal):
        posterior = ours.encode(signal)
        return posterior.mean, posterior.log_variance, posterior.kl()

    def encode_theirs(signal):
        posterior = reference.encode(signal).latent_dist
        return posterior.mean, posterior.logvar, posterior.kl()

    found = run(encode_ours, ours.decode, ours)
    expected = run(encode_theirs, lambda z: reference.decode(z).sample, reference)
    assert_outputs_agree(found[0], expected[0])
    assert_gradients_agree(found[1], expected[1])


def test_kl_is_that_of_torch_distributions_and_zero_for_the_prior():
    mean, log_variance = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(Posterior(mean, log_variance).kl(), expected)
    assert Posterior(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)).kl().tolist() == [0.0]
    # One value: mean 3, variance e: (9 + e - 1 - 1) / 2.
    one = Posterior(torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1))
    assert one.kl().item() == pytest.approx((9 + math.e - 2) / 2)


def test_samples_have_the_posterior_moments_and_zero_noise_gives_the_mode():
    posterior = Posterior(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), math.log(9.0)))
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    samples = posterior.sample(noise)
    assert samples.mean().item() == pytest.approx(2.0, abs=0.1)
    assert samples.std().item() == pytest.approx(3.0, abs=0.1)
    assert torch.equal(posterior.sample(torch.zeros(1, 1, 1, 1)), posterior.mode())


def test_moments_are_split_widened_and_clamped():
    moments = torch.tensor([1.0, 2.0, -99.0, 99.0], dtype=torch.bfloat16).reshape(1, 4, 1, 1)
    posterior = Posterior.from_moments(moments)
    assert posterior.mean.flatten().tolist() == [1.0, 2.0]
    assert posterior.log_variance.flatten().tolist() == [-30.0, 20.0]
    assert posterior.mean.dtype == posterior.log_variance.dtype == torch.float32


def test_pixels_survive_the_round_trip_and_cover_the_range():
    pixels = torch.arange(256).to(torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    signal = to_signal(pixels)
    assert (signal.min(), signal.max()) == (-1, 1)
    assert torch.equal(to_image(signal), pixels)
    # 127.5 steps per unit, rounded to the nearest, clamped outside.
    values = torch.tensor([-1.5, -1.0 + 0.6 / 127.5, -1.0 + 0.4 / 127.5, 1.2]).reshape(1, 1, 2, 2)
    assert to_image(values).flatten().tolist() == [0, 1, 0, 255]


@pytest.mark.parametrize(
    ("changes", "factor"),
    [({"patch_px": 4}, 8), ({"patch_px": 2, "channels": [8, 8, 16]}, 8), ({"patch_px": 8, "channels": [8]}, 8)],
)
def test_the_patchifying_stem_shares_the_factor_with_the_levels(changes, factor):
    model = autoencoder(**changes)
    assert model.factor == factor
    mean = model.encode(torch.randn(1, 3, 16, 24)).mean
    assert mean.shape == (1, 4, 2, 3)
    assert model.decode(mean).shape == (1, 3, 16, 24)


def test_a_patch_of_pixels_reaches_its_own_place():
    # One level, no attention, and a residual stack that starts as the identity: only 3x3 convolutions mix patches.
    model = autoencoder(patch_px=4, channels=[8], middle_attention=False)
    for norm in [m for m in model.modules() if isinstance(m, torch.nn.GroupNorm)]:
        norm.forward = lambda h: h
    x = torch.randn(1, 3, 32, 32)
    changed = x.clone()
    changed[..., :4, :4] += 1
    moved = (model.encode(x).mean - model.encode(changed).mean).abs().sum(1)[0] > 0
    assert moved[:3, :3].all() and not moved[3:].any() and not moved[:, 3:].any()


def test_an_image_size_that_the_factor_does_not_divide_is_refused():
    with pytest.raises(AssertionError, match="factor 2 does not divide"):
        autoencoder().encode(torch.zeros(1, 3, 7, 8))


def test_the_plain_loss_is_the_mean_error_of_a_decoded_sample():
    data = batch()
    for error in ("l1", "l2"):
        model = objective(error=error)
        signal = to_signal(data["image"])
        posterior = model.autoencoder.encode(signal)
        out = model.autoencoder.decode(posterior.sample(data["noise"]))
        expected = (out - signal).abs().mean() if error == "l1" else (out - signal).square().mean()
        torch.testing.assert_close(model(data)["loss"], expected)


def test_kl_is_weighed_per_pixel_value():
    data = batch()
    plain, weighed = objective()(data), objective(kl_weight=0.5)(data)
    torch.testing.assert_close(weighed["loss"] - plain["loss"], 0.5 * plain["kl"] / (3 * 8 * 8))


@pytest.mark.parametrize("error", ["l1", "l2"])
def test_a_learned_log_variance_is_a_likelihood_and_trains_to_its_optimum(error):
    data = batch()
    model = objective(error=error, learned_log_variance=True)
    assert "log_variance" in dict(model.named_parameters())
    model.autoencoder.requires_grad_(False)
    optimizer = torch.optim.SGD([model.log_variance], lr=2.0)
    for _ in range(15):
        optimizer.zero_grad()
        out = model(data)
        out["loss"].backward()
        optimizer.step()
    scale = torch.exp(model.log_variance.detach())
    # A Laplace density has variance 2 E|e|^2 at its best, a Gaussian E e^2.
    best = 2 * out["l1"] ** 2 if error == "l1" else out["mse"]
    torch.testing.assert_close(scale, best, rtol=1e-2, atol=0)
    if error == "l1":
        density = torch.distributions.Laplace(0.0, (scale / 2).sqrt())
        constant = math.log(2) / 2
    else:
        density = torch.distributions.Normal(0.0, scale.sqrt())
        constant = math.log(2 * math.pi) / 2
    typical = out["l1"] if error == "l1" else out["mse"].sqrt()
    torch.testing.assert_close(model(data)["loss"] + constant, -density.log_prob(typical), rtol=1e-4, atol=1e-5)


def test_gradient_error_of_known_images():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    # Slope 1 across and 0 down; at half the resolution neighbours lie 2 apart.
    assert gradient_error(ramp, 1).item() == pytest.approx(0.5)
    assert gradient_error(ramp, 2).item() == pytest.approx((1 + 2) / 4)
    assert gradient_error(torch.full((1, 3, 8, 8), 7.0), 3).item() == 0
    assert gradient_error(ramp.transpose(2, 3), 2) == gradient_error(ramp, 2)
    with pytest.raises(AssertionError, match="too small"):
        gradient_error(ramp, 4)


def test_the_gradient_term_joins_the_loss_only_where_it_is_on():
    data = batch()
    plain, with_gradients = objective()(data), objective(gradient_weight=2.0)(data)
    assert "gradient" not in plain
    torch.testing.assert_close(with_gradients["loss"] - plain["loss"], 2 * with_gradients["gradient"])
    model = objective()
    signal = to_signal(data["image"])
    out = model.autoencoder.decode(model.autoencoder.encode(signal).sample(data["noise"]))
    differences = [out.diff(dim=d) - signal.diff(dim=d) for d in (2, 3)]
    half = [torch.nn.functional.avg_pool2d(image, 2) for image in (out, signal)]
    differences += [half[0].diff(dim=d) - half[1].diff(dim=d) for d in (2, 3)]
    torch.testing.assert_close(with_gradients["gradient"], sum(d.abs().mean() for d in differences).detach() / 4)


def test_training_moves_every_parameter_and_lowers_the_loss():
    model = objective(learned_log_variance=True, kl_weight=1e-4, gradient_weight=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    data, l1 = batch(), []
    for _ in range(6):
        optimizer.zero_grad()
        out = model(data)
        out["loss"].backward()
        optimizer.step()
        l1.append(out["l1"].item())
    assert l1[-1] < l1[0]
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_the_objective_runs_under_bf16_and_measures_in_float32():
    model, data = objective(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(data)
    assert {value.dtype for value in out.values()} == {torch.float32}
    assert out["loss"].item() == pytest.approx(model(data)["loss"].item(), rel=2e-2)
