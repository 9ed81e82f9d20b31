from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

from headstart.evaluation import bootstrap as module
from headstart.evaluation.bootstrap import REPLICATES, assign_units, fraction_interval, interval
from headstart.targets.class_figures import contributions, figures
from helpers.resampled import redrawn_figures
from helpers.torchmetrics_figures import torchmetrics_figures


def drawn(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits that know something of the labels; the last class does not occur."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, n)
    logits = generator.normal(size=(n, 5)) + 2 * np.eye(5)[labels]
    return logits.astype(np.float32), labels


def times_drawn(labels: NDArray[np.int64], groups: list[str] | None) -> NDArray[np.float32]:
    """How often each image is in each redrawn set, (sets, n)."""
    units = assign_units(labels, groups)
    return np.concatenate(list(units.draws()))[:, units.of_image]


def test_sums_over_all_images_give_what_torchmetrics_gives() -> None:
    logits, labels = drawn(300)
    expected = torchmetrics_figures(logits, labels, 3)
    found = figures(contributions(logits, labels, 3).sum(axis=0)[None], 3)
    assert set(found) == set(expected)
    for name, values in found.items():
        assert values == pytest.approx([expected[name]], abs=2e-6), name


def test_a_replicate_is_the_figures_of_the_images_that_were_drawn() -> None:
    logits, labels = drawn(80)
    replicates = redrawn_figures(logits, labels, None, 3)
    times = times_drawn(labels, None)
    for i in (0, 57, REPLICATES - 1):
        again = np.repeat(np.arange(80), times[i].astype(int))
        expected = torchmetrics_figures(logits[again], labels[again], 3)
        for name, values in replicates.items():
            assert values[i] == pytest.approx(expected[name], abs=2e-6), name


def test_each_class_is_drawn_as_often_as_it_occurs() -> None:
    labels = np.repeat([0, 1, 2], [50, 7, 1])
    times = times_drawn(labels, None)
    assert times.shape == (REPLICATES, 58)
    for label, count in enumerate([50, 7, 1]):
        assert set(times[:, labels == label].sum(1)) == {count}
    # In the long run each image once, with the variance of n draws out of n.
    assert times[:, :50].mean() == 1
    assert times[:, :50].var() == pytest.approx(1 - 1 / 50, rel=0.02)


def test_groups_are_drawn_whole_and_mixed_ones_among_themselves() -> None:
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 0, 1])
    groups = ["x", "x", "y", "z", "z", "m", "m", "n", "n"]
    times = times_drawn(labels, groups)
    for group in set(groups):
        members = times[:, [name == group for name in groups]]
        assert (members == members[:, :1]).all()
    by_unit = {group: times[:, groups.index(group)] for group in "xyzmn"}
    assert set(by_unit["x"] + by_unit["y"]) == {2}
    assert set(by_unit["m"] + by_unit["n"]) == {2}
    assert set(by_unit["z"]) == {1}
    assert Counter(by_unit["x"]).keys() == {0, 1, 2}


def test_groups_widen_the_interval() -> None:
    """Ten copies of each image say no more than one."""
    logits, labels = drawn(60)
    once = redrawn_figures(logits, labels, None, 3)["accuracy"]
    copies = np.repeat(np.arange(60), 10)
    names = [str(i) for i in copies]
    grouped = redrawn_figures(logits[copies], labels[copies], names, 3)["accuracy"]
    alone = redrawn_figures(logits[copies], labels[copies], None, 3)["accuracy"]
    assert grouped.std() == pytest.approx(once.std(), rel=0.1)
    assert alone.std() < 0.5 * once.std()


def test_the_interval_is_that_of_scipys_bootstrap() -> None:
    """One class, so that its stratum is all there is."""
    logits, _ = drawn(200)
    labels = np.zeros(200, np.int64)
    replicates = redrawn_figures(logits, labels, None, 3)
    right = (logits.argmax(1) == 0).astype(float)
    expected = bootstrap((right,), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
    assert interval(replicates["accuracy"]) == pytest.approx(list(expected), abs=0.012)
    nll = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none").numpy()
    expected = bootstrap((nll,), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
    assert interval(replicates["nll"]) == pytest.approx(list(expected), abs=0.02)


def test_an_interval_without_spread_is_none_and_of_a_fraction_exact() -> None:
    assert interval(np.ones(10)) is None
    exact = binomtest(20, 20).proportion_ci(0.95)
    assert fraction_interval(np.ones(10), 20) == pytest.approx([exact.low, 1.0], abs=1e-6)
    assert fraction_interval(np.zeros(10), 20) == pytest.approx([0.0, 1 - exact.low], abs=1e-6)
    spread = np.linspace(0, 1, 1001)
    assert fraction_interval(spread, 20) == interval(spread) == pytest.approx([0.025, 0.975])


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 test sets of 150 images in 4 classes of unlike difficulty; benchmarks/studies/trust.py does it at length."""
    monkeypatch.setattr(module, "REPLICATES", 300)
    fractions, accuracies = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.9, 0.8, 0.7, 0.6])
    truth, hits = fractions @ accuracies, []
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), (fractions * 150).astype(int))
    for _ in range(200):
        right = generator.random(len(labels)) < accuracies[labels]
        logits = 4 * np.eye(4, dtype=np.float32)[np.where(right, labels, (labels + 1) % 4)]
        replicates = redrawn_figures(logits, labels, None, 3)
        low, high = interval(replicates["accuracy"]) or (0, 0)
        hits.append(low <= truth <= high)
    assert 0.9 <= np.mean(hits) <= 0.985


@pytest.mark.parametrize("grouped", [False, True])
def test_drawing_many_together_gives_the_intervals_of_drawing_each(
    monkeypatch: pytest.MonkeyPatch, *, grouped: bool
) -> None:
    """Within what 1,000 draws leave open: an end, at two standard deviations, by about a tenth of one."""
    logits, labels = drawn(40_000)
    groups = [f"{i // 2}" for i in range(len(labels))] if grouped else None
    each = redrawn_figures(logits, labels, groups, 3)
    monkeypatch.setattr(module, "MAX_UNITS", 2000)
    units = assign_units(labels, groups)
    assert 1500 < len(units.stratum) < 3000
    together = redrawn_figures(logits, labels, groups, 3)
    for name, expected in each.items():
        spread = expected.std()
        assert together[name].std() == pytest.approx(spread, rel=0.1), name
        assert interval(together[name]) == pytest.approx(interval(expected), abs=0.25 * spread), name


def test_units_are_joined_at_random_within_their_class_and_rare_ones_stay_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_UNITS", 300)
    labels = np.repeat([0, 1, 2, 3], [5000, 990, 150, 60])
    units = assign_units(labels, None)
    for label, sizes in enumerate([{21, 20}, {10}, {2}, {1}]):
        of_class = units.of_image[labels == label]
        assert {units.stratum[i] for i in set(of_class)} == {label}
        assert set(Counter(of_class.tolist()).values()) <= sizes | {5000 % 21}
        assert not np.array_equal(of_class, np.sort(of_class)) or label == 3
    assert np.array_equal(units.of_image, assign_units(labels, None).of_image)
    times = times_drawn(labels, None)
    # As many of each class as there are, but for its last unit, which may be smaller.
    assert np.abs(times[:, labels == 1].sum(1) - 990).max() == 0
    groups = [f"{i // 3}" for i in range(len(labels))]
    joined = assign_units(labels, groups)
    assert len({(group, unit) for group, unit in zip(groups, joined.of_image, strict=True)}) == len(set(groups))
    assert joined.independent() == len(set(groups))
    assert joined.independent(labels == 3) == 21  # one has an image of the class before
