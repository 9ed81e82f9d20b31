"""What is computed in blocks is what it is in one, and takes no more memory than some bytes an image."""

import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.core import blocks, paths
from headstart.core.blocks import Rows, row_blocks, write_rows
from headstart.core.io import read_json
from headstart.data.manifest import MANIFEST_COLUMNS
from headstart.evaluation import bootstrap
from headstart.evaluation.bootstrap import assign_units
from headstart.evaluation.leaderboard import compute_leaderboard
from headstart.evaluation.predictions import ModelPredictions, write_predictions
from headstart.evaluation.slices import compute_slices, read_metadata
from headstart.evaluation.trust import write_trust
from headstart.report.confusion import count_predictions
from headstart.report.inputs import read_predictions
from headstart.targets.classes import Classes
from helpers.approximately import approximately

CLASSES = [f"class{i}" for i in range(40)]
TARGET = Classes(CLASSES)
MODELS = ("probe", "finetune")
Models = dict[str, ModelPredictions]
Labels = dict[str, np.ndarray[Any, np.dtype[np.int64]]]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bootstrap, "REPLICATES", 20)


def invented(images: int) -> tuple[Models, Labels]:
    """Two models' logits of validation and test, on disk."""
    generator, models = np.random.default_rng(0), Models()
    labels = {split: generator.integers(0, len(CLASSES), images) for split in ("validation", "test")}
    for name in MODELS:
        logits = dict[str, Rows]()
        for split, of_split in labels.items():
            drawn = generator.normal(size=(images, len(CLASSES))) + 3 * np.eye(len(CLASSES))[of_split]
            logits[split] = write_rows(Path(f"{name}-{split}.npy"), [drawn.astype(np.float32)], drawn.shape)
        distances = {split: generator.random(images, np.float32) for split in labels}
        models[name] = ModelPredictions(logits, 0.5, 1.0, 1.0, distances, np.ones((10, 2), np.float32), target=TARGET)
    return models, labels


def rows(labels: Any) -> Iterator[dict[str, str]]:
    for i, label in enumerate(labels):
        row = dict.fromkeys(MANIFEST_COLUMNS, "") | {"id": f"{i:016x}", "source": f"{i}.png", "label": CLASSES[label]}
        yield row | {"site": f"{i % 5}", "age": f"{i % 100}"}


def parts(models: Models, labels: Labels) -> dict[str, Callable[[], Any]]:
    """All that evaluate computes of predictions."""
    test, probe = labels["test"], models["probe"].outputs["test"]
    units = assign_units(test, None)
    fitted = {name: TARGET.fit(model.outputs["validation"], labels["validation"]) for name, model in models.items()}

    def slices() -> Any:
        correct = TARGET.scores(models["finetune"].outputs["test"], test, fitted["finetune"])
        return [each._asdict() for each in compute_slices(read_metadata(rows(test)), correct, assign_units(test, None))]

    def label_errors() -> Any:
        blocks = (np.exp(probe[some]) for some in row_blocks(probe.shape))
        certain = (block / block.sum(1, keepdims=True) for block in blocks)
        return [each._asdict() for each in Classes(CLASSES).find_errors(test, certain)]

    def predictions() -> Any:
        write_predictions(TARGET, labels, models, fitted, rows(test))
        return None

    def trust() -> Any:
        write_trust(models, labels, fitted, units)
        return read_json(paths.TRUST)

    return {
        "leaderboard": lambda: compute_leaderboard(models, test, TARGET, fitted, units),
        "trust": trust,
        "slices": slices,
        "label errors": label_errors,
        "predictions": predictions,
        "mistakes": lambda: [
            each._asdict() for each in count_predictions(TARGET, partial(read_predictions, TARGET)).pairs
        ],
    }


def test_in_blocks_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    models, labels = invented(400)
    whole = {name: part() for name, part in parts(models, labels).items()}
    table = paths.PREDICTIONS.read_bytes()
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 7 * (len(CLASSES) + blocks.VALUES_BESIDE))
    for name, part in parts(models, labels).items():
        assert approximately(part(), 2e-6) == approximately(whole[name], 0), name
    assert paths.PREDICTIONS.read_bytes() == table


def test_memory_for_each_image_is_less_than_a_hundred_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an image's logits are 160 bytes of each model, by what three times as many images take more."""
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 200 * (len(CLASSES) + blocks.VALUES_BESIDE))
    monkeypatch.setattr(bootstrap, "MAX_UNITS", 80)
    monkeypatch.setattr(bootstrap, "LEAST_UNITS", 2)
    peaks: dict[str, list[int]] = {}
    for images in (1000, 3000):
        for name, part in parts(*invented(images)).items():
            tracemalloc.start()
            part()
            peaks.setdefault(name, []).append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    more = {name: (large - small) / 2000 for name, (small, large) in peaks.items()}
    assert {name: each for name, each in more.items() if each > 100} == {}
