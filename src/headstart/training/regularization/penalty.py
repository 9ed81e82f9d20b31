"""Regularisers: ``Loss = CE + Σ_g λ_g ‖W_g‖²`` and its relatives, each applied where it is exactly what its name says.

The sum runs over a group's elements: no mean, no ½, so the gradient is ``2 λ_g W_g`` (``docs/mathematics.md``).

- ``l2``: SGD and Adam add ``weight_decay · W`` to the gradient, so there ``weight_decay = 2λ`` is the penalty. Clipping
  would bound the gradient before the decay joins it, and AdamW's decay is another thing: there the penalty is written
  out in the loss, and AdamW's own decay is off.
- ``l2_sp``: ``λ ‖W − W₀‖²`` about the pretrained weights (Li, Grandvalet and Davoine 2018), always in the loss.
- ``decoupled``: ``W ← (1 − τ d) W`` beside the step (Loshchilov and Hutter 2019): AdamW's, and timm's SGDW.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim.sgdw import SGDW
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from headstart.training.regularization.param_groups import Group

RegularizerKind = Literal["l2", "l2_sp", "decoupled", "none"]
OptimizerName = Literal["sgd", "adam", "adamw"]
Location = Literal["loss", "optimizer", "nowhere"]

INERT = 1e-3
"""A total shrink below this has no effect to speak of."""
NOTICEABLE = 1e-2
"""A total shrink that has one."""


def penalty_location(kind: RegularizerKind, optimizer: OptimizerName, *, clipped: bool) -> Location:
    """Return where the regulariser acts, so that it is exactly what its kind says.

    Raises:
        ValueError: decoupled decay under Adam, which is AdamW.
    """
    if kind == "decoupled":
        if optimizer == "adam":
            raise ValueError("Adam has no decoupled decay; AdamW is Adam with it")
        return "optimizer"
    if kind == "l2":
        return "optimizer" if optimizer in {"sgd", "adam"} and not clipped else "loss"
    return "loss" if kind == "l2_sp" else "nowhere"


def penalty(groups: Sequence[Group], anchors: Mapping[str, Tensor] | None = None) -> Tensor:
    """Compute the penalty ``Σ_g λ_g ‖W_g − A_g‖²``, a float32 scalar (float64 for float64 parameters).

    ``anchors`` has A by a parameter's name; it is 0 for those that it lacks.
    """
    anchors = anchors or {}
    terms = [
        group.l2 * (_wide(parameter) - anchors[name] if name in anchors else _wide(parameter)).square().sum()
        for group in groups
        if group.l2
        for name, parameter in group.parameters.items()
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _wide(parameter: Tensor) -> Tensor:
    """Convert to at least float32: a sum of squares in fewer bits loses the small ones."""
    return parameter if parameter.dtype == torch.float64 else parameter.float()


def make_optimizer(
    groups: Sequence[Group],
    name: OptimizerName,
    kind: RegularizerKind,
    *,
    clipped: bool,
    momentum: float,
    nesterov: bool,
    fused: bool,
) -> Optimizer:
    """Make the optimiser, with the regulariser in it where that is exactly the same.

    Each group becomes one of the optimiser's, in order, with its name. ``adamw`` is Adam unless the decay is decoupled;
    momentum and nesterov are SGD's; timm's SGDW has no fused kernels.
    """
    inside = penalty_location(kind, name, clipped=clipped) == "optimizer"
    params = [
        {
            "params": list(group.parameters.values()),
            "lr": group.lr,
            "weight_decay": (group.decay if kind == "decoupled" else 2 * group.l2) if inside else 0.0,
            "name": group.name,
        }
        for group in groups
    ]
    if name != "sgd":
        return Adam(params, fused=fused) if name == "adam" else AdamW(params, fused=fused)
    # Each group brings its own rate.
    if kind == "decoupled":
        return SGDW(params, lr=0.0, momentum=momentum, nesterov=nesterov)
    optimizer = SGD(params, lr=0.0, momentum=momentum, nesterov=nesterov, fused=fused)
    if fused and momentum:
        # The fused kernel can't step where some parameters have a momentum and others, frozen until then, have none
        # (torch 2.15). To begin at zero is the same: the first value is then the gradient.
        for group in groups:
            for parameter in group.parameters.values():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def expected_shrink(
    group: Group, kind: RegularizerKind, optimizer: OptimizerName, factors: NDArray[np.float64], momentum: float
) -> float | None:
    """Estimate the fraction of its weights that a group loses to its regulariser over a training.

    ``1 − Π_t (1 − 2 τ_t λ / (1 − μ))``, and for decoupled decay ``1 − Π_t (1 − τ_t d)``; for ``l2_sp`` the fraction of
    the distance from the pretrained weights. Clipping makes it less. None under Adam with the penalty in the gradient,
    which the second moment rescales. ``factors`` (steps,) are the schedule's on the learning rate at each step in which
    the group trains; the momentum is SGD's.
    """
    if kind != "decoupled" and optimizer != "sgd":
        return None
    rate = group.decay if kind == "decoupled" else 2 * group.l2 / (1 - momentum)
    return abs(float(np.expm1(np.log1p(-np.minimum(group.lr * factors * rate, 1 - 1e-12)).sum())))


def l2_for_shrink(
    shrink: float, kind: RegularizerKind, lr: float, factors: NDArray[np.float64], momentum: float
) -> float:
    """Return the λ, or decoupled decay, that would shrink the weights by this fraction; inverts ``expected_shrink``."""
    time = lr * float(factors.sum())
    return -math.log1p(-shrink) / time * (1.0 if kind == "decoupled" else (1 - momentum) / 2)
