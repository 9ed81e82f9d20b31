"""Which changes of an image keep its label, asked of the probe on validation images: evidence for augmentation.

An image that keeps its label when it is changed has a second answer to the same question: averaging the logits of both
should not make the answer worse. Where a change takes away what tells the classes apart it does, and the loss shows
that with fewer images than the accuracy, and of every target. Compared image by image, averaging may not raise the loss
by more than ``MARGIN`` of it, with the confidence of a 95 % interval: with too few images to tell, it is refused. So is
one that most images of some class, label, grade or part of the numbers do not survive, which a mean over many hides:
a mirror makes "turn left" of "turn right".
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from headstart.models.head import Head
from headstart.targets.target import Target, Values

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
    values: Values,
    target: Target,
) -> dict[str, Any]:
    """Judge changes by the features (n, width) of images and, by the change's name, of the same images changed.

    Returns:
        As plain values: how many ``images``; why nothing was judged, ``reason``, or None; ``changes``, by each name
        whether it is ``kept`` and the ``reason``, the target's first measure, such as ``accuracy``, of the images and
        of the changed ones, ``changed_accuracy``, the ``loss``, and by how much averaging raises it, ``rise``, with its
        ``interval``.
    """
    reason = None
    if not changed:
        reason = "data/features has no changed images: random weights, no validation images, or an earlier version"
    elif len(values) < FEWEST_IMAGES:
        reason = f"{len(values)} validation images are too few to tell: it takes {FEWEST_IMAGES}"
    if reason:
        logger.info("augmentation: nothing is taken: %s", reason)
        return {"images": len(values), "reason": reason, "changes": {}}
    before = head.logits(features)
    changes = {name: _judge(before, head.logits(each), values, target) for name, each in changed.items()}
    measure = next(iter(target.measures))
    for name, verdict in changes.items():
        text = "augmentation: %-12s  %-7s  %s %.3f, changed %.3f  %s"
        figures = verdict[measure], verdict[f"changed_{measure}"], verdict["reason"]
        logger.info(text, name, "kept" if verdict["kept"] else "refused", target.measures[measure].title, *figures)
    return {"images": len(values), "reason": None, "changes": changes}


def _judge(before: NDArray[np.float32], after: NDArray[np.float32], values: Values, target: Target) -> dict[str, Any]:
    """Judge one change by the outputs (n, outputs) of the images before and after it."""
    loss = target.losses(before.astype(np.float64), values)
    rise = target.losses(((before + after) / 2).astype(np.float64), values) - loss
    error = float(ndtri((1 + CONFIDENCE) / 2) * rise.std(ddof=1) / np.sqrt(len(rise)))
    mean, scale = float(rise.mean()), max(float(loss.mean()), float(np.finfo(np.float64).tiny))
    strata, right, still_right = target.strata(values), target.right(before, values), target.right(after, values)
    of_group, lost = (
        np.bincount(strata.groups[each], minlength=len(strata.names)) for each in (right, right & ~still_right)
    )
    # A class with fewer lost images tells nothing, and may not hide another.
    worst = int(np.argmax(np.where(lost >= FEWEST_LOST, lost / np.maximum(of_group, 1), 0.0)))
    kept = mean + error <= MARGIN * scale
    most = f"{mean / scale:+.1%}, at most by {(mean + error) / scale:+.1%}"
    reason = f"averaged with the changed image's answer the loss changes by {most}"
    if kept and lost[worst] >= FEWEST_LOST and lost[worst] > of_group[worst] / 2:
        kept = False
        reason = f"{lost[worst]} of {of_group[worst]} right answers for {strata.names[worst]!r} are wrong after it"
    measure = next(iter(target.measures))
    return {
        "kept": kept,
        "reason": reason,
        measure: target.score(before, values),
        f"changed_{measure}": target.score(after, values),
        "loss": float(loss.mean()),
        "rise": mean,
        "interval": [mean - error, mean + error],
    }
