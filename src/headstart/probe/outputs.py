"""What each baseline predicts for the images outside train: collected, timed, and kept in ``models/baselines``.

Outputs of the target's form are kept and not fitted estimators: those could only be pickled, and a pickle runs code
when it is read.
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
from headstart.targets.target import validation_figures

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From features float32 (n, width) to the target's outputs float32 (n, outputs): of classes, log-probabilities."""
OUTSIDE_TRAIN = SPLITS[1:]

logger = logging.getLogger(__name__)


class BaselineOutputs:
    """Writes the baselines' outputs for the images outside train, and collects their figures on validation.

    Attributes:
        figures: by name, ``settings``, the ``validation_figures``, ``fit_seconds`` and ``predict_seconds``.
    """

    def __init__(self, folder: Path, prepared: PreparedDataset) -> None:
        """Write into a folder that exists."""
        self.figures: dict[str, dict[str, Any]] = {}
        self._folder, self._prepared = folder, prepared
        self._width = read_features(prepared.rows("validation")[:0]).shape[1]

    def add(self, name: str, settings: dict[str, Any], predict: Predict, *, fit_seconds: float) -> None:
        """Run a baseline on all images; only those of the last split are timed, as evaluate times the other models."""
        outputs, target, predict_seconds = dict[Split, Rows](), self._prepared.target, 0.0

        def predictions(rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
            nonlocal predict_seconds
            for block in row_blocks((len(rows), max(self._width, target.outputs))):
                features = read_features(rows[block])
                began = time.perf_counter()
                predicted = predict(features)
                predict_seconds += time.perf_counter() - began
                yield predicted

        for split in OUTSIDE_TRAIN:
            predict_seconds, rows = 0.0, self._prepared.rows(split)
            path = self._folder / baseline_file(name, split)
            outputs[split] = write_rows(path, predictions(rows), (len(rows), target.outputs))
        figures = validation_figures(target, outputs["validation"], read_values("validation"))
        self.figures[name] = {
            "settings": settings,
            **figures,
            "fit_seconds": round(fit_seconds, 3),
            "predict_seconds": round(predict_seconds, 3),
        }
        measure = next(iter(target.measures))
        shown = name, figures["val_loss"], target.measures[measure].title, figures[f"val_{measure}"], fit_seconds
        logger.info("%-9s  validation %.4f  %s %.4f  in %.1f s", *shown)


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
    """Return a baseline's outputs for the images of a split, in the order of ``PreparedDataset.rows``."""
    return stored_rows(existing(BASELINES / baseline_file(name, split)))
