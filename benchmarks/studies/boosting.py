"""Which gradient boosting the probe uses, and with how many threads: fitting times on invented features of 10 classes.

python benchmarks/studies/boosting.py
"""

import time
from typing import Any

import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

SIZES = ((250, 184), (250, 512), (3_000, 184), (3_000, 512), (20_000, 512))
ITERATIONS = 50


def measure(name: str, model: Any, threads: int | None, images: int, width: int) -> None:
    """Fit, and print the time and the lowest loss on 1,000 other rows of any iteration."""
    features, labels = make_classification(
        images + 1_000, width, n_informative=40, n_redundant=width - 60, n_classes=10, class_sep=1.5, random_state=0
    )
    features = features.astype(np.float32)
    with threadpool_limits(threads, user_api="openmp"):
        began = time.perf_counter()
        model.fit(features[:images], labels[:images])
        seconds = time.perf_counter() - began
        stages = model.staged_predict_proba(features[images:])
        loss = min(log_loss(labels[images:], stage, labels=range(10)) for stage in stages)
    print(f"{images:6d} x {width}  {name:34s} {seconds:7.2f} s  loss {loss:.3f}", flush=True)


def main() -> None:
    """Print a row for each size and kind."""
    for images, width in SIZES:
        for threads in (1, None):
            histogram = HistGradientBoostingClassifier(
                max_iter=ITERATIONS, max_depth=3, max_features=0.1, max_bins=63, early_stopping=False, random_state=0
            )
            measure(f"histogram, {threads or 'all'} threads", histogram, threads, images, width)
        if images <= 3_000:
            exact = GradientBoostingClassifier(
                n_estimators=ITERATIONS, max_depth=3, max_features="sqrt", random_state=0
            )
            measure("exact, √width features a split", exact, 1, images, width)


if __name__ == "__main__":
    main()
