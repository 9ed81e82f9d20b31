import math

import numpy as np
import scipy.special

from headstart.targets.classes import nonconformity, softmax
from headstart.targets.conformal import threshold


def test_softmax_is_scipys() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 7), scale=30).astype(np.float32)
    np.testing.assert_allclose(softmax(logits), scipy.special.softmax(logits.astype(np.float64), axis=1), rtol=1e-12)
    np.testing.assert_array_equal(softmax(np.array([[3e38, -3e38]], np.float32)), [[1, 0]])


def test_scores_of_an_image_by_hand() -> None:
    logits = np.log([[0.5, 0.1, 0.3, 0.1]]).astype(np.float32)
    np.testing.assert_allclose(nonconformity(logits, "LAC"), [[0.5, 0.9, 0.7, 0.9]], atol=1e-6)
    np.testing.assert_allclose(nonconformity(logits, "APS"), [[0.0, 0.8, 0.5, 0.9]], atol=1e-6)


def test_the_threshold_is_the_rank_of_vovk() -> None:
    scores = np.arange(1.0, 20.0)[::-1]  # 19 of them: 0.9 · 20 = 18
    assert threshold(scores, 0.9) == 18
    assert threshold(scores, 0.95) == 19
    assert threshold(scores[:18], 0.95) == math.inf
