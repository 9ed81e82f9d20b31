"""Which changes of an image keep its label, asked of the probe on validation images: evidence for augmentation.

An image that keeps its label when it is changed has a second answer to the same question: averaging the logits of both
should not make the answer worse. Where a change takes away what tells the classes apart it does, and the loss shows
that with fewer images than the accuracy. Compared image by image, averaging may not raise the loss by more than
``MARGIN`` of it, with the confidence of a 95 % interval: where there are too few images to tell, the change is refused.
So is one that most images of some class do not survive, which a mean over many classes hides: a mirror makes "turn
left" of "turn right".
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, ndtri

from headstart.models.head import Head

MARGIN = 0.05
"""Largest rise of the loss, as a share of it."""
FEWEST_IMAGES, FEWEST_LOST = 30, 3
"""Validation images that an interval needs, and lost images that tell something about a class."""
CONFIDENCE = 0.95

logger = logging.getLogger(__name__)


def judge_changes(
    head: Head,
    features: NDArray[np.float32],
    changed: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.int64],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Judge changes by the features (n, width) of images and, by the change's name, of the same images changed.

    ``labels`` are int64 (n,), ``classes`` their names.

    Returns:
        As plain values: how many ``images``; why nothing was judged, ``reason``, or None; ``changes``, by each name
        whether it is ``kept`` and the ``reason``, the ``accuracy`` of the images and the ``changed_accuracy``, the
        ``loss`` in nats, and by how much averaging raises it, ``rise``, with its ``interval``.
    """
    reason = None
    if not changed:
        reason = "data/features has no changed images: random weights, no validation images, or an earlier version"
    elif len(labels) < FEWEST_IMAGES:
        reason = f"{len(labels)} validation images are too few to tell: it takes {FEWEST_IMAGES}"
    if reason:
        logger.info("augmentation: nothing is taken: %s", reason)
        return {"images": len(labels), "reason": reason, "changes": {}}
    before = head.logits(features)
    changes = {name: _judge(before, head.logits(each), labels, classes) for name, each in changed.items()}
    for name, verdict in changes.items():
        text = "augmentation: %-12s  %-7s  accuracy %.3f, changed %.3f  %s"
        figures = verdict["accuracy"], verdict["changed_accuracy"], verdict["reason"]
        logger.info(text, name, "kept" if verdict["kept"] else "refused", *figures)
    return {"images": len(labels), "reason": None, "changes": changes}


def _judge(
    before: NDArray[np.float32], after: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Any]:
    """Judge one change by the logits (n, classes) of the images before and after it."""
    loss = _losses(before, labels)
    rise = _losses((before + after) / 2, labels) - loss
    error = float(ndtri((1 + CONFIDENCE) / 2) * rise.std(ddof=1) / np.sqrt(len(rise)))
    mean, scale = float(rise.mean()), max(float(loss.mean()), float(np.finfo(np.float64).tiny))
    right, still_right = (logits.argmax(axis=1) == labels for logits in (before, after))
    of_class, lost = (np.bincount(labels[each], minlength=len(classes)) for each in (right, right & ~still_right))
    # A class with fewer lost images tells nothing, and may not hide another.
    worst = int(np.argmax(np.where(lost >= FEWEST_LOST, lost / np.maximum(of_class, 1), 0.0)))
    kept = mean + error <= MARGIN * scale
    most = f"{mean / scale:+.1%}, at most by {(mean + error) / scale:+.1%}"
    reason = f"averaged with the changed image's answer the loss changes by {most}"
    if kept and lost[worst] >= FEWEST_LOST and lost[worst] > of_class[worst] / 2:
        kept = False
        reason = f"{lost[worst]} of {of_class[worst]} right answers for {classes[worst]!r} are wrong after it"
    return {
        "kept": kept,
        "reason": reason,
        "accuracy": float(right.mean()),
        "changed_accuracy": float(still_right.mean()),
        "loss": float(loss.mean()),
        "rise": mean,
        "interval": [mean - error, mean + error],
    }


def _losses(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return −log p of each image's label (n,), in nats."""
    return np.asarray(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels])
