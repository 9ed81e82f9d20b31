"""How the loss differs from the target's plain one, and the learning rate schedule."""

import math

import numpy as np

from headstart.config.finetune import FinetuneConfig
from headstart.targets.target import LossOptions, Target, Values


def loss_options(finetune: FinetuneConfig, target: Target, values: Values) -> LossOptions:
    """Return the options of the training's loss, NumPy's arrays in them; ``values`` are the training images'."""
    priors = target.log_priors(values) if finetune.logit_adjustment else None
    return LossOptions(
        finetune.loss,
        target.loss_weights(values) if finetune.class_weights == "balanced" else None,
        None if priors is None else np.float32(finetune.logit_adjustment) * priors,
        finetune.label_smoothing,
    )


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Return the factor on the learning rate: a linear warm-up from 1/warmup to 1, then half a cosine down to 0.

    Loshchilov and Hutter 2017, "SGDR", without restarts. ``step`` counts the optimiser steps taken so far; ``total`` is
    of the whole training, warm-up included.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
