"""What each baseline predicts for the images outside train: collected, timed, and kept in ``models/baselines``.

Probabilities are kept and not fitted estimators: those could only be pickled, and a pickle runs code when it is read.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from headstart.core.io import atomic_write, existing
from headstart.core.paths import BASELINE_OUTPUTS, BASELINES
from headstart.data.dataset import PreparedDataset
from headstart.features.cache import read_features
from headstart.probe.temperature import negative_log_likelihood

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From features float32 (n, width) to log-probabilities float32 (n, classes)."""

logger = logging.getLogger(__name__)


class BaselineOutputs:
    """The baselines' log-probabilities for the images outside train, and their figures on validation.

    Attributes:
        rows: int64 (n,), increasing: which images.
        log_probabilities: float32 (n, classes) by the baseline's name.
        figures: by name, ``settings``, ``val_loss``, ``val_accuracy``, ``fit_seconds`` and ``predict_seconds``.
    """

    def __init__(self, prepared: PreparedDataset, features: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Read the features of the images outside train and validation; the arguments are validation's."""
        self.rows = np.setdiff1d(np.arange(len(prepared.ids)), prepared.rows("train"))
        self.log_probabilities: dict[str, NDArray[np.float32]] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        self._features, self._labels = features, labels
        self._in_validation = np.isin(self.rows, prepared.rows("validation"))
        self._other_features = read_features(self.rows[~self._in_validation])

    def add(self, name: str, settings: dict[str, Any], predict: Predict, *, fit_seconds: float) -> None:
        """Run a baseline on all images; only those outside validation are timed, as evaluate times the other models."""
        on_validation = predict(self._features)
        began = time.perf_counter()
        on_others = predict(self._other_features)
        predict_seconds = time.perf_counter() - began
        outputs = np.empty((len(self.rows), on_validation.shape[1]), np.float32)
        outputs[self._in_validation], outputs[~self._in_validation] = on_validation, on_others
        self.log_probabilities[name] = outputs
        val_loss = negative_log_likelihood(on_validation, self._labels)
        val_accuracy = float((on_validation.argmax(1) == self._labels).mean())
        self.figures[name] = {
            "settings": settings,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "fit_seconds": round(fit_seconds, 3),
            "predict_seconds": round(predict_seconds, 3),
        }
        logger.info("%-9s  validation %.4f  accuracy %.4f  in %.1f s", name, val_loss, val_accuracy, fit_seconds)


def write_baselines(rows: NDArray[np.int64], log_probabilities: Mapping[str, NDArray[np.float32]]) -> None:
    """Write the attributes of ``BaselineOutputs`` with these names."""
    with atomic_write(BASELINES) as partial:
        partial.mkdir()
        save_file({"rows": rows, **log_probabilities}, partial / BASELINE_OUTPUTS.name)


def read_baselines(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Read the baselines' outputs for some of the images that were written: float32 (n, classes) by name."""
    outputs = load_file(existing(BASELINE_OUTPUTS))
    written = outputs.pop("rows")
    places = np.searchsorted(written, rows)
    assert np.array_equal(written[places], rows), "the baselines were written for other images"
    return {name: values[places] for name, values in outputs.items()}
