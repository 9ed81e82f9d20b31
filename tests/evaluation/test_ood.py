import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from headstart.evaluation.ood import ood_thresholds
from headstart.inference.scores import NEIGHBOUR, distances


def test_distances_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    features, reference = (generator.normal(size=(n, 8)).astype(np.float32) for n in (20, 50))
    expected, _ = NearestNeighbors(n_neighbors=NEIGHBOUR, metric="cosine").fit(reference).kneighbors(features)
    np.testing.assert_allclose(distances(features, reference), expected[:, -1], atol=1e-6)
    np.testing.assert_allclose(distances(3 * features, reference), distances(features, reference), atol=1e-6)


def test_few_references_and_features_of_nothing() -> None:
    reference = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(distances(np.eye(3, dtype=np.float32), reference), [1, 1, 1])
    np.testing.assert_allclose(distances(np.zeros((1, 3), np.float32), reference), [1])


def test_thresholds_let_the_usual_share_pass() -> None:
    validation = np.linspace(0, 0.998, 999, dtype=np.float32)
    test = np.array([0.1, 0.94, 0.96, 0.995], np.float32)
    found = ood_thresholds({"validation": validation, "test": test}, 500)
    assert found["thresholds"] == pytest.approx({"0.95": 0.949, "0.99": 0.989})
    assert found["flagged"] == {"0.95": 0.5, "0.99": 0.25}
    few = ood_thresholds({"validation": validation[:30], "test": test}, 7)
    assert list(few["thresholds"]) == ["0.95"]
    assert few["neighbour"] == 7
