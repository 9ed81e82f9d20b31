import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from headstart.probe.logistic import ridge_path
from headstart.targets.classes import Classes

PATH = [1e-4, 1.0, 1e-2]  # in no order


@pytest.fixture
def data() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Correlated features off zero; one of the four classes does not occur."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 8)) @ generator.normal(size=(8, 8)) + 3
    return features, generator.integers(0, 3, 200)


def test_the_minimum_is_scikit_learns(data: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    features, labels = data
    heads = list(ridge_path(features, labels, Classes("abcd"), PATH))
    assert [l2 for l2, _, _ in heads] == sorted(PATH, reverse=True)
    for l2, weight, bias in heads:
        model = Ridge(alpha=l2 * len(labels)).fit(features, np.eye(4)[labels])
        assert weight == pytest.approx(model.coef_, rel=1e-9, abs=1e-12)
        assert bias == pytest.approx(model.intercept_, rel=1e-9, abs=1e-12)


def test_the_gradient_of_the_written_out_loss_is_zero(data: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    features, labels = data
    for l2, weight, bias in ridge_path(features, labels, Classes("abcd"), PATH):
        residual = features @ weight.T + bias - np.eye(4)[labels]
        assert 2 * residual.T @ features / len(labels) + 2 * l2 * weight == pytest.approx(0, abs=1e-10)
        assert residual.mean(0) == pytest.approx(0, abs=1e-12)


def test_repeated_and_half_precision_features_and_more_features_than_images(
    data: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    features, labels = data
    repeated = np.column_stack([features, features, np.ones(len(labels))]).astype(np.float16)[:12]
    ((_, weight, bias),) = ridge_path(repeated, labels[:12], Classes("abcd"), [1e-3])
    model = Ridge(alpha=1e-3 * 12).fit(repeated.astype(np.float64), np.eye(4)[labels[:12]])
    assert weight.dtype == bias.dtype == np.float64
    assert weight == pytest.approx(model.coef_, rel=1e-6, abs=1e-9)
    assert bias == pytest.approx(model.intercept_, rel=1e-6, abs=1e-9)
