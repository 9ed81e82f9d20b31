"""The probe: chosen on validation, blind to test labels, kept along the whole path."""

import json
from pathlib import Path

import numpy as np
import pytest

from headstart.ground.artifacts import Prepared, read_head, read_labels, read_table, write_features
from headstart.libraries.linear import cross_entropy
from headstart.stages import probe
from pictures import params, write_prepared

PATH = [1.0, 0.1, 0.01]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Features that tell the class, but for noise."""
    monkeypatch.chdir(tmp_path)
    prepared = write_prepared({"train": 40, "validation": 24, "test": 8})
    generator = np.random.default_rng(1)
    features = generator.normal(size=(len(prepared.ids), 6)).astype(np.float32)
    for split in ("train", "validation"):
        rows, labels = prepared.rows(split), read_labels(split)
        features[rows, labels] += 1.5
    write_features(iter(features), features.shape, "float32", {})
    return prepared


def test_the_lowest_validation_loss_is_chosen_and_reported(prepared: Prepared) -> None:
    probe.run(params({"probe.l2": PATH}).declared(probe.PARAMS))
    table = read_table(Path("reports/probe/l2_path.csv"))
    assert [float(row["l2"]) for row in table] == PATH
    losses = [float(row["val_loss"]) for row in table]
    chosen = read_head()
    report = json.loads(Path("reports/probe.json").read_text())
    assert chosen.l2 == report["l2"] == PATH[int(np.argmin(losses))]
    features = np.load("data/features/features.npy")[prepared.rows("validation")]
    assert cross_entropy(chosen.logits(features), read_labels("validation")) == pytest.approx(min(losses))
    assert report["val_accuracy"] > 0.6


@pytest.mark.usefixtures("prepared")
def test_a_head_of_at_least_a_given_l2_can_be_had() -> None:
    probe.run(params({"probe.l2": PATH}).declared(probe.PARAMS))
    chosen = read_head()
    assert chosen.l2 < 1
    assert read_head(chosen.l2 / 2).l2 == chosen.l2
    assert read_head(7.0).l2 == 1
    assert np.linalg.norm(read_head(7.0).weight) < np.linalg.norm(chosen.weight)
