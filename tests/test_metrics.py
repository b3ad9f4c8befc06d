import numpy as np
import pytest
import torch
from scipy import linalg, stats

from ldm.evaluation import metrics


def features(count: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + shift


def scipy_frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    gap = a.numpy().mean(0) - b.numpy().mean(0)
    return float(gap @ gap + np.trace(cov_a + cov_b - 2 * root))


def test_frechet_distance_agrees_with_scipy():
    a, b = features(400, 6, 0), features(300, 6, 1, shift=0.5)
    assert metrics.frechet_distance(a, b) == pytest.approx(scipy_frechet(a, b), rel=1e-8)


def test_frechet_distance_of_known_gaussians():
    # For diagonal covariances it is |m - n|^2 + sum (s - t)^2: one axis twice as wide, and shifted by 3.
    base = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(base.T.cov())).T
    other = base * torch.tensor([2.0, 1, 1, 1]) + torch.tensor([3.0, 0, 0, 0])
    assert metrics.frechet_distance(base, other) == pytest.approx(9 + 1, rel=1e-9)
    assert abs(metrics.frechet_distance(base, base)) < 1e-9


def test_frechet_distance_with_fewer_samples_than_features_is_finite():
    a, b = features(10, 32, 0), features(10, 32, 0) + 1.0
    assert metrics.frechet_distance(a, b) == pytest.approx(32, rel=1e-4)


def test_kernel_distance_agrees_with_its_definition():
    a, b = features(40, 5, 0), features(40, 5, 1, shift=0.3)

    def kernel(x, y):
        return (x @ y.T / 5 + 1) ** 3

    def off_diagonal_mean(k):
        return float((k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)))

    expected = off_diagonal_mean(kernel(a, a)) + off_diagonal_mean(kernel(b, b)) - 2 * float(kernel(a, b).mean())
    found, spread = metrics.kernel_distance(a, b, num_subsets=3, subset_size=1000, seed=0)
    assert found == pytest.approx(expected, rel=1e-9)
    assert spread < 1e-9 * abs(expected)  # a subset of all samples is always the same


def test_kernel_distance_depends_on_its_seed_alone():
    a, b = features(60, 5, 0), features(60, 5, 1)
    torch.manual_seed(5)
    first = metrics.kernel_distance(a, b, 4, 20, seed=0)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after), "the global generator was advanced"
    assert metrics.kernel_distance(a, b, 4, 20, seed=0) == first
    assert metrics.kernel_distance(a, b, 4, 20, seed=1) != first


@pytest.mark.parametrize(("num_true", "count"), [(0, 10), (10, 10), (7, 10), (940, 1000), (1, 1)])
def test_wilson_interval_agrees_with_scipy(num_true, count):
    found = metrics.proportion([True] * num_true + [False] * (count - num_true))
    expected = stats.binomtest(num_true, count).proportion_ci(0.95, method="wilson")
    assert (found.value, found.count) == (num_true / count, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_of_a_mean():
    values = torch.tensor([1.0, 2, 3, 6])
    found = metrics.mean_interval(values)
    half = stats.norm.ppf(0.975) * np.std([1, 2, 3, 6], ddof=1) / 2
    assert (found.low, found.value, found.high) == pytest.approx((3 - half, 3, 3 + half))


def test_clip_score_is_one_for_equal_features_and_its_margin_the_rest():
    same = torch.eye(6)
    matched, margin = metrics.clip_score(same, same)
    assert (matched.value, margin.value) == (1, 1)
    constant = torch.ones(6, 4) / 2
    matched, margin = metrics.clip_score(constant, constant)
    assert (matched.value, margin.value) == (1, 0)


def test_shuffled_captions_are_a_derangement():
    for count in range(2, 9):
        order = torch.arange(count).roll(metrics.shuffle_offset(count))
        assert not bool((order == torch.arange(count)).any())


def test_an_image_is_found_when_fewer_than_k_others_are_nearer():
    gallery = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0.1], [1, 0.3], [0, 1]]), dim=1)
    queries = gallery[:1].repeat(3, 1)
    assert metrics.is_retrieved(queries, gallery, torch.eye(3, 4) > 0, k=2).tolist() == [True, True, False]
    alike = torch.tensor([[False, False, True, True]])
    assert metrics.is_retrieved(queries[:1], gallery, alike, k=3).tolist() == [True]
    assert metrics.is_retrieved(queries[:1], gallery, alike, k=2).tolist() == [False]


def test_the_interval_of_the_kernel_distance_holds_its_value_and_the_truth():
    """The value is that of torchmetrics over one subset of all rows; the interval covers the distance of the
    distributions in about 95 of 100 draws."""
    draw = torch.Generator().manual_seed(0)
    b = torch.randn(400, 6, generator=draw)
    a = torch.randn(400, 6, generator=draw) + 0.1
    estimate = metrics.kernel_interval(a, b)
    value, _ = metrics.kernel_distance(a, b, 1, 400, 0)
    assert estimate.value == pytest.approx(value, abs=1e-9)
    assert estimate.low < estimate.value < estimate.high and estimate.count == 400
    draws = [metrics.kernel_interval(torch.randn(40, 6, generator=draw) + 0.1, b) for _ in range(200)]
    truth = sum(each.value for each in draws) / len(draws)
    assert 0.88 <= sum(each.low <= truth <= each.high for each in draws) / len(draws) <= 1
