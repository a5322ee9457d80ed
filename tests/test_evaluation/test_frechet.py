"""Fréchet distance: closed forms, invariants, few samples, and the message of each mistake."""
import math

import pytest
import torch
from torch import Tensor

from mmsynth.evaluation import Gaussian, frechet_distance


def draw(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def between(first: Tensor, second: Tensor) -> float:
    return frechet_distance(Gaussian.fit(first), Gaussian.fit(second))


def test_fit_gives_mean_and_unbiased_covariance() -> None:
    features = draw(40, 5) @ draw(5, 5, seed=1) + 3
    fitted = Gaussian.fit(features.float())
    features = features.float().double()
    assert fitted.count == 40 and fitted.mean.dtype == fitted.root.dtype == torch.float64
    torch.testing.assert_close(fitted.mean, features.mean(0))
    torch.testing.assert_close(fitted.covariance, features.T.cov())


@pytest.mark.parametrize('count', [3, 100])
def test_equal_sets_are_at_zero(count: int) -> None:
    assert between(draw(count, 8), draw(count, 8)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('count', [3, 100])
def test_a_shift_costs_its_square(count: int) -> None:
    shift = torch.arange(8.0, dtype=torch.float64)
    assert between(draw(count, 8), draw(count, 8) + shift) == pytest.approx(float(shift @ shift))


def test_one_dimension() -> None:
    """(μ1 - μ2)² + (σ1 - σ2)²."""
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [11.0]])
    assert between(first, second) == pytest.approx((1 - 6)**2 + (math.sqrt(2) - math.sqrt(50))**2)


def test_commuting_covariances() -> None:
    """Diagonal ones: the sum over the axes of (σ1 - σ2)²."""
    first, second = (Gaussian(torch.zeros(3).double(), torch.diag(torch.tensor(sigmas)).double(), 9)
                     for sigmas in ((1.0, 2.0, 0.0), (3.0, 2.0, 0.5)))
    assert frechet_distance(first, second) == pytest.approx(4 + 0 + 0.25)


def test_general_covariances_agree_with_the_matrix_root() -> None:
    first, second = draw(50, 6) @ draw(6, 6, seed=1), draw(60, 6, seed=2) @ draw(6, 6, seed=3) + 0.3
    one, two = first.T.cov(), second.T.cov()
    values, vectors = torch.linalg.eig(one @ two)
    root = (vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)).real
    expected = (first.mean(0) - second.mean(0)).square().sum() + (one + two - 2 * root).trace()
    assert between(first, second) == pytest.approx(float(expected), rel=1e-9)


def test_symmetry_and_rotation_change_nothing() -> None:
    first, second = draw(30, 5), 2 * draw(20, 5, seed=1) + 1
    rotation = torch.linalg.qr(draw(5, 5, seed=2)).Q
    assert between(second, first) == pytest.approx(between(first, second))
    assert between(first @ rotation, second @ rotation) == pytest.approx(between(first, second))
    assert between(3 * first, 3 * second) == pytest.approx(9 * between(first, second))


def test_fewer_samples_than_features_are_defined_and_biased() -> None:
    """The same distribution: the distance falls as the counts grow."""
    few, some, many = (between(draw(count, 32), draw(count, 32, seed=1)) for count in (8, 64, 4096))
    assert few > 4 * some > 16 * many > 0


@pytest.mark.parametrize('features, message', [
    (torch.zeros(1, 3), r'\(N, D\) with at least two samples.*got \(1, 3\)'),
    (torch.zeros(4), r'got \(4,\)'),
    (torch.zeros(4, 0), r'got \(4, 0\)'),
    (torch.tensor([[0.0], [math.nan], [math.inf]]), '`features` must be finite, got 2 values'),
])
def test_features_that_cannot_be_fitted(features: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gaussian.fit(features)


def test_other_features() -> None:
    with pytest.raises(ValueError, match='over the same features, got 3 and 4'):
        between(draw(9, 3), draw(9, 4))
