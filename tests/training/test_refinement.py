"""The refined loss against the temperature that scipy finds on all images at once."""

import numpy as np
import pytest
import torch

from headstart.targets.classes import Classes
from headstart.targets.likelihood import fit_temperature
from headstart.training.refinement import RefinedLoss
from helpers.constants import negative_log_likelihood


def logits_and_labels(sharpness: float, images: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (images, 4) that are right more often than not, ``sharpness`` times too sure."""
    random = np.random.default_rng(seed)
    labels = random.integers(4, size=images)
    logits = random.normal(size=(images, 4)) + 2 * np.eye(4)[labels]
    return torch.tensor(sharpness * logits, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 7.0])
def test_it_is_the_loss_after_the_best_temperature_whatever_the_parts(sharpness: float) -> None:
    logits, labels = logits_and_labels(sharpness)
    metric = RefinedLoss()
    for part in np.array_split(np.arange(len(labels)), 7):
        metric.update(logits[part], labels[part])
    temperature = fit_temperature(Classes([*"abcd"]), logits.numpy(), labels.numpy())
    best = negative_log_likelihood(logits.numpy() / temperature, labels.numpy())
    assert best * (1 - 1e-5) <= float(metric.compute()) <= best * 1.002


def test_confidence_changes_it_less_than_mistakes_do() -> None:
    losses = []
    for sharpness, seed in ((1.0, 0), (7.0, 0), (1.0, 1)):
        metric = RefinedLoss()
        metric.update(*logits_and_labels(sharpness, seed=seed))
        losses.append(float(metric.compute()))
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[2] != pytest.approx(losses[0], rel=2e-3)


def test_it_begins_anew_after_a_reset() -> None:
    metric = RefinedLoss()
    metric.update(*logits_and_labels(1.0, seed=1))
    metric.reset()
    metric.update(*logits_and_labels(1.0))
    once = RefinedLoss()
    once.update(*logits_and_labels(1.0))
    assert float(metric.compute()) == float(once.compute())
