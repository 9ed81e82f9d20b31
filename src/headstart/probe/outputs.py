"""The names on disk of what the probe's head is compared with, each with its reader and its writer.

Beside ``artifacts``, which has the head itself: the classifier that a backbone came with, in ``data/features``, and
what each baseline says of the images that nothing was fitted to, in ``models/baselines``. Probabilities are kept and
not fitted estimators: those could only be pickled, and a pickle runs code when it is read.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from headstart.core.io import atomic_write, existing
from headstart.core.paths import BASELINE_OUTPUTS, BASELINES


def write_baselines(rows: NDArray[np.int64], log_probabilities: Mapping[str, NDArray[np.float32]]) -> None:
    """Write what each baseline says of the same images.

    Args:
        rows: int64 (n,), increasing: which images.
        log_probabilities: float32 (n, classes) by the baseline's name.
    """
    from safetensors.numpy import save_file  # noqa: PLC0415

    with atomic_write(BASELINES) as aside:
        aside.mkdir()
        save_file({"rows": rows, **log_probabilities}, aside / BASELINE_OUTPUTS.name)


def read_baselines(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Read what each baseline says of some of the images: float32 (n, classes) by name.

    Args:
        rows: int64 (n,), among those that were written; each is looked up by its number.
    """
    from safetensors.numpy import load_file  # noqa: PLC0415

    outputs = load_file(existing(BASELINE_OUTPUTS))
    written = outputs.pop("rows")
    places = np.searchsorted(written, rows)
    assert np.array_equal(written[places], rows), "the baselines were written for other images"
    return {name: values[places] for name, values in outputs.items()}
