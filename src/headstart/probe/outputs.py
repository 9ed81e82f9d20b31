"""What each baseline predicts for the images outside train: collected, timed, and kept in ``models/baselines``.

Probabilities are kept and not fitted estimators: those could only be pickled, and a pickle runs code when it is read.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Rows, row_blocks, stored_rows, write_rows
from headstart.core.io import atomic_write, existing
from headstart.core.paths import BASELINES
from headstart.data.dataset import SPLITS, PreparedDataset, Split, read_values
from headstart.features.cache import read_features
from headstart.targets.likelihood import correct_predictions, negative_log_likelihood

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From features float32 (n, width) to log-probabilities float32 (n, classes)."""
OUTSIDE_TRAIN = SPLITS[1:]

logger = logging.getLogger(__name__)


class BaselineOutputs:
    """Writes the baselines' log-probabilities for the images outside train, and collects their figures on validation.

    Attributes:
        figures: by name, ``settings``, ``val_loss``, ``val_accuracy``, ``fit_seconds`` and ``predict_seconds``.
    """

    def __init__(self, folder: Path, prepared: PreparedDataset) -> None:
        """Write into a folder that exists."""
        self.figures: dict[str, dict[str, Any]] = {}
        self._folder, self._prepared = folder, prepared
        self._width = read_features(prepared.rows("validation")[:0]).shape[1]

    def add(self, name: str, settings: dict[str, Any], predict: Predict, *, fit_seconds: float) -> None:
        """Run a baseline on all images; only those of the last split are timed, as evaluate times the other models."""
        outputs, classes, predict_seconds = dict[Split, Rows](), len(self._prepared.classes), 0.0

        def predictions(rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
            nonlocal predict_seconds
            for block in row_blocks((len(rows), max(self._width, classes))):
                features = read_features(rows[block])
                began = time.perf_counter()
                predicted = predict(features)
                predict_seconds += time.perf_counter() - began
                yield predicted

        for split in OUTSIDE_TRAIN:
            predict_seconds, rows = 0.0, self._prepared.rows(split)
            path = self._folder / baseline_file(name, split)
            outputs[split] = write_rows(path, predictions(rows), (len(rows), classes))
        val_outputs, labels = outputs["validation"], read_values("validation")
        val_loss = negative_log_likelihood(val_outputs, labels)
        val_accuracy = float(correct_predictions(val_outputs, labels).mean())
        self.figures[name] = {
            "settings": settings,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "fit_seconds": round(fit_seconds, 3),
            "predict_seconds": round(predict_seconds, 3),
        }
        logger.info("%-9s  validation %.4f  accuracy %.4f  in %.1f s", name, val_loss, val_accuracy, fit_seconds)


@contextmanager
def write_baselines(prepared: PreparedDataset) -> Iterator[BaselineOutputs]:
    """Yield what writes models/baselines."""
    with atomic_write(BASELINES) as partial:
        partial.mkdir()
        yield BaselineOutputs(partial, prepared)


def baseline_file(name: str, split: Split) -> str:
    """Return the name of the file in models/baselines that has a baseline's outputs for a split."""
    return f"{name}-{split}.npy"


def read_baseline(name: str, split: Split) -> Rows:
    """Return a baseline's log-probabilities for the images of a split, in the order of ``PreparedDataset.rows``."""
    return stored_rows(existing(BASELINES / baseline_file(name, split)))
