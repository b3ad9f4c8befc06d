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
    found = measure(shards_of(mean, log_variance, 64)).scale
    drawn = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
    assert torch.allclose(found.mean, drawn.double().mean((0, 2, 3)), atol=0.03)
    assert torch.allclose(found.std, drawn.double().std((0, 2, 3)), rtol=0.02)
    # The posterior variance is a large part here, so leaving it out would show.
    assert (found.std > 1.1 * mean.double().std((0, 2, 3))).any()


def test_statistics_of_one_known_latent():
    mean = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2)
    log_variance = torch.tensor([4.0, 16.0]).log().reshape(1, 1, 1, 2)
    found = measure(shards_of(mean, log_variance)).scale
    assert found.mean.tolist() == [2.0]
    assert found.std.item() ** 2 == pytest.approx(1 + 10, rel=2e-3)


def test_statistics_do_not_depend_on_the_shards():
    mean, log_variance = torch.randn(10, 3, 4, 4), torch.randn(10, 3, 4, 4)
    one, many = (measure(shards_of(mean, log_variance, size)) for size in (10, 3))
    assert torch.allclose(one.covariance, many.covariance, atol=1e-12)
    one, many = one.scale, many.scale
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
    scale = measure(shards_of(torch.randn(10, 3, 4, 4), torch.randn(10, 3, 4, 4))).scale
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


NONE = LatentScale(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [
        (0.04, 1.04, ""),
        (0.06, 1.0, r"channel 1 mean \+0\.0600 \(at most 0\.0500\)"),
        (0.0, 0.94, r"channel 1 std -0\.0600"),
        (0.0, float("nan"), "channel 1 std"),
    ],
)
def test_scaled_latents_are_checked_per_channel(mean, std, found):
    scaled = LatentScale(torch.tensor([0.0, mean]), torch.tensor([1.0, std]))
    if found:
        with pytest.raises(IntegrityError, match=rf"differ from mean 0 and std 1: {found}.* 0\.05 and 5 standard"):
            check_scaled(scaled, NONE, 0.05, "val")
    else:
        check_scaled(scaled, NONE, 0.05, "val")


def _images(count, seed, shift=0.0):
    """Latents of images that differ in brightness and contrast, as images do: their cells are not independent."""
    draw = torch.Generator().manual_seed(seed)
    bright, contrast = torch.randn(2, count, 2, 1, 1, generator=draw)
    mean = shift + bright + (0.5 * contrast).exp() * torch.randn(count, 2, 8, 8, generator=draw)
    return measure(shards_of(mean, torch.full_like(mean, -3.0), 50))


def test_standard_errors_are_the_deviations_of_statistics_of_other_images():
    train = _images(2000, 0)
    for count in (20, 100):
        drawn = [_images(count, seed).scale.relative_to(train.scale) for seed in range(1, 201)]
        errors = train.errors(count)
        for name in ("mean", "std"):
            spread = torch.stack([getattr(scale, name) for scale in drawn]).std(0)
            assert torch.allclose(getattr(errors, name), spread, rtol=0.25), (count, name)
    assert (train.errors(10**9).mean < train.errors(100).mean / 4).all(), "those of the training images are left"


def test_equal_images_have_no_error():
    """Such as one that a mixture repeats: by rounding their variance is below 0."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        mean, log_variance = torch.randn(2, 1, 4, 6, 6, generator=draw).expand(2, 7, 4, 6, 6)
        equal = measure(shards_of(mean, log_variance, 7))
        check_scaled(equal.scale.relative_to(equal.scale), equal.errors(7), 1e-6, "val")


@pytest.mark.parametrize("count", [3, 6, 100, 1000])
def test_few_images_are_no_fault_and_others_are(count):
    """Six validation images differ by more than a tolerance of 0.2 from those of training, by chance alone."""
    train = _images(500, 0)
    alike = [_images(count, seed).scale.relative_to(train.scale) for seed in range(1, 101)]
    for scaled in alike:
        check_scaled(scaled, train.errors(count), 0.05, "val")
    assert count > 6 or max(float(scaled.mean.abs().max()) for scaled in alike) > 0.39
    if count >= 100:
        with pytest.raises(IntegrityError, match="channel 0 mean"):
            check_scaled(_images(count, 1, 2.0).scale.relative_to(train.scale), train.errors(count), 0.05, "val")
