import pytest
import torch

from ldm.autoencoder.encoding.latents import LatentScale, check_scaled, measure, metrics
from ldm.core.errors import IntegrityError


def shards_of(mean, log_variance, size=3):
    parts = zip(mean.half().split(size), log_variance.half().split(size), strict=True)
    return [{"mean": part, "log_variance": other} for part, other in parts]


def test_statistics_are_those_of_drawn_latents():
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([-3.0, 40.0])[:, None, None]
    mean = torch.randn(200, 2, 8, 8, generator=generator) * torch.tensor([0.5, 2.0])[:, None, None] + offsets
    log_variance = torch.rand(200, 2, 8, 8, generator=generator) * 3 - 2
    found = measure(shards_of(mean, log_variance, 64))
    drawn = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
    assert torch.allclose(found.mean, drawn.double().mean((0, 2, 3)), atol=0.03)
    assert torch.allclose(found.std, drawn.double().std((0, 2, 3)), rtol=0.02)
    # The posterior variance is a large part here, so leaving it out would show.
    assert (found.std > 1.1 * mean.double().std((0, 2, 3))).any()


def test_statistics_of_one_known_latent():
    mean = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2)
    log_variance = torch.tensor([4.0, 16.0]).log().reshape(1, 1, 1, 2)
    found = measure(shards_of(mean, log_variance))
    assert found.mean.tolist() == [2.0]
    assert found.std.item() ** 2 == pytest.approx(1 + 10, rel=2e-3)


def test_statistics_do_not_depend_on_the_shards():
    mean, log_variance = torch.randn(10, 3, 4, 4), torch.randn(10, 3, 4, 4)
    one, many = (measure(shards_of(mean, log_variance, size)) for size in (10, 3))
    assert torch.allclose(one.mean, many.mean, atol=1e-12) and torch.allclose(one.std, many.std, rtol=1e-12)


def test_latent_scale_standardises_each_channel_and_travels_as_facts():
    z = torch.randn(500, 2, 4, 4) * torch.tensor([3.0, 0.5])[:, None, None] + torch.tensor([1.0, -2.0])[:, None, None]
    scale = LatentScale(z.mean((0, 2, 3)), z.std((0, 2, 3)))
    scaled = scale.normalise(z)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(2), atol=1e-4, rtol=0)
    again = LatentScale.from_facts(scale.to_facts())
    torch.testing.assert_close(again.denormalise(scaled), z)


def test_a_scale_is_measured_in_float64_and_applied_in_float32():
    scale = measure(shards_of(torch.randn(10, 3, 4, 4), torch.randn(10, 3, 4, 4)))
    assert scale.mean.dtype == scale.std.dtype == torch.float64
    read = LatentScale.from_facts(scale.to_facts())
    assert torch.equal(read.mean, scale.mean.float()) and torch.equal(read.std, scale.std.float())
    assert read.normalise(torch.randn(1, 3, 4, 4)).dtype == torch.float32


def test_scaled_statistics():
    scale = LatentScale(torch.tensor([2.0, 0.0]).double(), torch.tensor([4.0, 1.0]).double())
    scaled = LatentScale(torch.tensor([3.0, 0.5]).double(), torch.tensor([2.0, 1.0]).double()).relative_to(scale)
    assert scaled.mean.tolist() == [0.25, 0.5]
    assert scaled.std.tolist() == [0.5, 1.0]
    assert scale.relative_to(scale).to_facts() == {"mean": [0.0, 0.0], "std": [1.0, 1.0]}


def test_metrics_are_nested_scalars():
    scale = LatentScale(torch.tensor([2.0, 0.0]), torch.tensor([4.0, 1.0]))
    scaled = LatentScale(torch.tensor([-0.25, 0.125]), torch.tensor([1.0, 0.5]))
    found = metrics(scale, scaled)
    assert (found["worst_mean"], found["worst_std"]) == (0.25, 0.5)
    assert found["channel_0"] == {"mean": 2.0, "std": 4.0, "val_scaled_mean": -0.25, "val_scaled_std": 1.0}
    assert found["channel_1"] == {"mean": 0.0, "std": 1.0, "val_scaled_mean": 0.125, "val_scaled_std": 0.5}


@pytest.mark.parametrize(
    ("mean", "std", "ok"), [(0.04, 1.04, True), (0.06, 1.0, False), (0.0, 0.94, False), (0.0, float("nan"), False)]
)
def test_scaled_latents_are_checked_per_channel(mean, std, ok):
    scaled = LatentScale(torch.tensor([0.0, mean]), torch.tensor([1.0, std]))
    if ok:
        check_scaled(scaled, 0.05, "val")
    else:
        with pytest.raises(IntegrityError, match=r"channel 1 mean .* std .*within 0\.05"):
            check_scaled(scaled, 0.05, "val")
