"""Gradients by differences, and an ill-scaled input; what it reads and writes is in ``headstart study --help``."""

import logging
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from headstart.core import paths
from headstart.core.io import write_json
from headstart.theory import drawing
from headstart.theory.oracle import CENTRAL_STEP, central_differences, descend, gradients, loss

STEPS = np.logspace(-1, -12, 67)
ILL_SCALE = 1e6
L2 = 1e-3
CHECKED = 200
"""Images of which the gradients are checked; SGD has them all."""
HIDDEN = 16
EPOCHS, BATCH, RECORD_EVERY = 4, 32, 4

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)


def run() -> None:
    """Measure, write the figures and draw them."""
    digits = load_digits()
    inputs, one_hot = digits.data / 16, np.eye(10)[digits.target]
    column = int(inputs.std(axis=0).argmax())
    ill_scaled = inputs.copy()
    ill_scaled[:, column] *= ILL_SCALE

    errors = {
        "central": _errors(inputs, one_hot, column, 1, central=True),
        "one_sided": _errors(inputs, one_hot, column, 1, central=False),
        "central_ill_scaled": _errors(ill_scaled, one_hot, column, ILL_SCALE, central=True),
    }
    descents = {"pixels": _largest_stable(inputs, one_hot), "ill_scaled": _largest_stable(ill_scaled, one_hot)}
    figures = {
        "largest_relative_error": {
            "one_layer": _check((inputs.shape[1], 10), inputs[:CHECKED], one_hot[:CHECKED]),
            "two_layers": _check((inputs.shape[1], HIDDEN, 10), inputs[:CHECKED], one_hot[:CHECKED]),
        },
        "best": {
            name: {"step": float(STEPS[np.argmin(curve)]), "error": float(min(curve))} for name, curve in errors.items()
        },
        "at_the_rule": {name: float(np.interp(-np.log(CENTRAL_STEP), -np.log(STEPS), errors[name])) for name in errors},
        "sgd": {name: {"largest_stable_rate": rate, "loss": losses[-1]} for name, (rate, losses) in descents.items()},
    }
    write_json(paths.STUDY / "gradients.json", figures)
    _draw(errors, descents)
    for name, content in figures.items():
        logger.info("%s: %s", name, content)
    logger.info("see %s/gradients.*", paths.STUDY)


def _drawn(sizes: Sequence[int]) -> list[Array]:
    """Draw the parameters of a head with the given layer widths."""
    generator = np.random.default_rng(0)
    return [generator.normal(scale=0.3, size=shape) for wide, out in pairwise(sizes) for shape in ((wide, out), (out,))]


def _check(sizes: Sequence[int], inputs: Array, one_hot: Array) -> dict[str, float]:
    """Return the largest relative error of central differences, against the gradients by hand and by torch."""
    parameters, l2s = _drawn(sizes), [L2] * (len(sizes) - 1)
    estimated = central_differences(lambda moved: loss(moved, inputs, one_hot, l2s), parameters)
    by_hand = gradients(parameters, inputs, one_hot, l2s)
    by_torch = _torch_gradients(parameters, inputs, one_hot, l2s)
    return {"by_hand": max(map(_relative, estimated, by_hand)), "by_torch": max(map(_relative, estimated, by_torch))}


def _relative(guess: Array, exact: Array) -> float:
    """Return the largest error, relative to the largest entry of the matrix or bias."""
    return float(np.abs(guess - exact).max() / np.abs(exact).max())


def _torch_gradients(parameters: Sequence[Array], inputs: Array, one_hot: Array, l2s: Sequence[float]) -> list[Array]:
    import torch  # noqa: PLC0415  (slow to import, and this alone needs it)
    from torch.nn.functional import cross_entropy  # noqa: PLC0415

    leaves = [torch.tensor(parameter, requires_grad=True) for parameter in parameters]
    value = torch.tensor(inputs)
    for weight, bias in zip(leaves[:-2:2], leaves[1:-2:2], strict=True):
        value = torch.tanh(value @ weight + bias)
    penalty = sum(l2 * weight.square().sum() for l2, weight in zip(l2s, leaves[::2], strict=True))
    objective = cross_entropy(value @ leaves[-2] + leaves[-1], torch.tensor(one_hot)) + penalty
    return [by_leaf.numpy() for by_leaf in torch.autograd.grad(objective, leaves)]


def _errors(inputs: Array, one_hot: Array, column: int, scale: float, *, central: bool) -> list[float]:
    """Return the relative error of the derivative by one input's weights on the checked images, at each of STEPS.

    ``scale`` is what the input was multiplied by: its weights are divided by it, so that the loss is the same.
    """
    inputs, one_hot = inputs[:CHECKED], one_hot[:CHECKED]
    weight, bias = _drawn((inputs.shape[1], one_hot.shape[1]))
    weight[column] /= scale
    exact = gradients([weight, bias], inputs, one_hot, [0.0])[0][column]

    def moved_loss(output: int, by: float) -> float:
        moved = weight.copy()
        moved[column, output] += by
        return loss([moved, bias], inputs, one_hot, [0.0])

    here = loss([weight, bias], inputs, one_hot, [0.0])
    curve = []
    for h in STEPS:
        ahead = np.array([moved_loss(output, h) for output in range(len(exact))])
        behind = np.array([moved_loss(output, -h) for output in range(len(exact))]) if central else here
        curve.append(_relative((ahead - behind) / (2 * h if central else h), exact))
    return curve


def _largest_stable(inputs: Array, one_hot: Array) -> tuple[float, list[float]]:
    """Find the largest power of two as τ with which SGD from zero never has a loss above the one it started from.

    Returns:
        τ, and the loss on all images at the start and after every RECORD_EVERY steps.
    """
    start = np.log(one_hot.shape[1])
    rate, losses = 2.0**8, [np.inf]
    while max(losses) > start * (1 + 1e-9):
        rate, losses = rate / 2, [start]
        generator, parameters = np.random.default_rng(0), [np.zeros((inputs.shape[1], 10)), np.zeros(10)]
        steps = EPOCHS * (len(inputs) // BATCH)
        for step in range(1, steps + 1):
            rows = generator.choice(len(inputs), BATCH, replace=False)
            parameters = descend(parameters, inputs[rows], one_hot[rows], [L2], rate=rate)
            if step % RECORD_EVERY == 0:
                losses.append(loss(parameters, inputs, one_hot, [L2]))
                if losses[-1] > start * (1 + 1e-9):
                    break
    return rate, losses


def _draw(errors: dict[str, list[float]], descents: dict[str, tuple[float, list[float]]]) -> None:
    figure, left, right = drawing.two_panels()
    for name, label, color, line in (
        ("one_sided", "one-sided", drawing.ORANGE, "-."),
        ("central", "central", drawing.BLUE, "-"),
        ("central_ill_scaled", "central, pixel × 10⁶", drawing.GREEN, "--"),
    ):
        left.loglog(STEPS, errors[name], color=color, linestyle=line, label=label)
    left.axvline(CENTRAL_STEP, color=drawing.GREY, linestyle=":", label="the oracle's h")
    left.invert_xaxis()
    left.set(title="Derivative by the weights of one pixel", xlabel="step h", ylabel="relative error")
    left.legend(frameon=False, loc="upper right")
    for name, label, color, line in (
        ("ill_scaled", "one pixel × 10⁶", drawing.GREEN, "--"),
        ("pixels", "pixels in 0 … 1", drawing.BLUE, "-"),
    ):
        rate, losses = descents[name]
        steps = RECORD_EVERY * np.arange(len(losses))
        right.plot(steps, losses, color=color, linestyle=line, label=f"{label}, τ = {rate:.1g}")
    right.set(title="SGD at the largest stable τ", xlabel="steps", ylabel="loss on all digits", ylim=(0, None))
    right.legend(frameon=False)
    drawing.save(figure, paths.STUDY / "gradients.svg")
