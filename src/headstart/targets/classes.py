"""Classes: one of several, learned by the cross-entropy of softmax."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix, row_blocks
from headstart.core.json_value import JsonValue
from headstart.core.text import normalize_label
from headstart.targets.arrays import Array, cast, constants, log_softmax, namespace
from headstart.targets.cells import CellError
from headstart.targets.conformal import LEVELS, checked_entry, entry, threshold
from headstart.targets.named import Named
from headstart.targets.reliability import ECE_BINS, Reliability
from headstart.targets.target import (
    FOCUS,
    MAX_RATIO,
    PLAIN,
    Answer,
    Covered,
    Figures,
    LabelError,
    Link,
    LossKind,
    LossOptions,
    Measure,
    Mistake,
    Words,
    percentage,
    rounded,
)
from headstart.targets.temperature import checked_temperature

METHODS = ("LAC", "APS")


class ClassesReader:
    """Reads the one class of an image."""

    is_name = True

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns

    def read(self, cells: Sequence[Any]) -> str:
        """Return the name of the class."""
        (cell,) = cells
        if cell is not None and (isinstance(cell, bool) or not isinstance(cell, str | int)):
            raise CellError("its label is neither a name nor a whole number", cell, "write one of these")
        text = normalize_label("" if cell is None else str(cell))
        if not text:
            raise CellError("the label is empty", None, "write one, or leave the image out")
        return text

    def target(self, texts: Iterable[str]) -> "Classes":
        """Return the classes in the order of their names."""
        return Classes(sorted(texts))


@dataclass(frozen=True)
class Classes(Named):
    """One of several classes; ``values`` are int64 (n,), from 0 in the order of the names.

    ``top_k``: within so many of the likeliest classes an image counts for the top-k accuracy.
    """

    names: Sequence[str]
    top_k: int = field(default=3, compare=False)
    kind: ClassVar[str] = "class"
    nouns: ClassVar[str] = "classes"
    answer_fields: ClassVar[tuple[str, ...]] = ("label", "probability", "top", "prediction_set")
    agreement_title: ClassVar[str] = "same top class"
    hub_tags: ClassVar[tuple[str, ...]] = ("image-classification",)
    losses_known: ClassVar[tuple[LossKind, ...]] = ("auto", "focal")
    tied: ClassVar[bool] = False
    has_classes: ClassVar[bool] = True
    calibrated_loss: ClassVar[str] = "refined_loss"
    link: ClassVar[Link] = "softmax"
    error_figures: ClassVar[tuple[str, ...]] = ("label_probability", "suggested_probability")
    measures: ClassVar[Mapping[str, Measure]] = {
        "accuracy": Measure("accuracy", higher_is_better=True, as_percent=True),
        "balanced_accuracy": Measure(
            "balanced accuracy",
            higher_is_better=True,
            as_percent=True,
            about="the mean over classes of the recall; rare classes count as much as common ones.",
        ),
        "macro_f1": Measure(
            "macro F1",
            higher_is_better=True,
            about="the mean over classes of F1, which is high only where both precision and recall are.",
        ),
        "nll": Measure(
            "NLL",
            higher_is_better=False,
            about="mean −log of the probability of the correct class, in nats; one confident mistake costs much.",
        ),
        "ece": Measure(
            "ECE",
            higher_is_better=False,
            about=f"difference between confidence and accuracy, averaged over {ECE_BINS} equally wide bins of "
            "confidence. For all three lower is better.",
        ),
    }
    compared: ClassVar[Sequence[str]] = ("accuracy", "nll")
    scored: ClassVar[str] = "accuracy"
    discrete: ClassVar[bool] = True
    ordered: ClassVar[bool] = False
    beside: ClassVar[Sequence[str]] = ()
    suffixes: ClassVar[Mapping[str, Callable[[str], Any]]] = {"": str, "_probability": float}
    words: ClassVar[Words] = Words(
        noun="class",
        nouns="classes",
        loss="cross-entropy",
        short_loss="NLL",
        second="Loss (NLL)",
        reached="accuracy",
        instead="Instead of one class, conformal prediction gives a set that contains the correct class with a "
        "promised probability.",
        covered="Contain the correct class",
        size="Classes in a set, mean",
        methods={
            "LAC": "takes every class whose probability is high enough, which gives the smallest sets, some of them "
            "empty.",
            "APS": "adds the most likely classes until their probabilities sum up to enough: larger sets for hard "
            "images, never an empty one. With too few validation images for a promise, every set has all classes.",
        },
        breakdown=("Class by class", "Class"),
        parts={"precision": "Precision", "recall": "Recall", "f1": "F1"},
        bar="",
        of_probe="f1",
        images=("support", "Test images"),
        notes={
            "Precision": "the fraction of the images predicted as this class that are labelled with it.",
            "Recall": "the fraction of the images labelled with this class that are predicted as it.",
            "F1": "their harmonic mean. A dash: not defined, since the class was never predicted or has no test image.",
        },
        worst="most confident mistakes",
        gallery="The percentage is the probability of the wrong prediction.",
        flawless="every test image is classified correctly",
        temperature="Temperature scaling divides the logits by one number before the softmax, which changes a model's "
        "confidence and none of its predictions.",
    )

    def measure(self, name: str) -> Measure:
        """Return one of the measures, or the top-k accuracy, the Brier score, the AUROC."""
        if name.startswith("top_"):
            k = name.removeprefix("top_").removesuffix("_accuracy")
            about = "Top-k: the correct class is among the k most likely."
            return Measure(f"top-{k}", higher_is_better=True, as_percent=True, about=about)
        others = {
            "brier": Measure(
                "Brier",
                higher_is_better=False,
                about="mean squared distance between probabilities and labels, 0 to 2.",
            ),
            "auroc": Measure(
                "AUROC",
                higher_is_better=True,
                about="the probability that an image of a class scores higher for it than an image of another class; "
                "mean over classes.",
            ),
        }
        return {**self.measures, **others}[name]

    def ranked_within(self, top_k: int) -> "Classes":
        """Return the classes with another ``top_k``."""
        return replace(self, top_k=top_k)

    @property
    def outputs(self) -> int:
        """A logit for each class."""
        return len(self.names)

    def losses(self, outputs: Array, values: Array, options: LossOptions = PLAIN) -> Array:
        """Return the cross-entropy, with label smoothing (Szegedy et al. 2016), weights, or focused on hard images."""
        xp = namespace(outputs)
        if options.shift is not None:
            outputs = outputs + options.shift
        log_probabilities = log_softmax(outputs)
        picked = xp.take_along_axis(log_probabilities, values[:, None], axis=1)[:, 0]
        losses = -picked
        if options.smoothing:
            share = options.smoothing / log_probabilities.shape[1]
            losses = losses * (1 - options.smoothing) - xp.sum(log_probabilities, axis=1) * share
        if options.kind == "focal":
            losses = losses * (1 - xp.exp(picked)) ** FOCUS
        return losses if options.weights is None else losses * options.weights[values]

    def derivatives(self, outputs: Array, values: Array) -> tuple[Array, Array, Array]:
        """Return the cross-entropy, its gradient, and the probabilities as the state."""
        xp = namespace(outputs)
        shifted = outputs - xp.max(outputs, axis=1, keepdims=True)
        picked = xp.take_along_axis(shifted, values[:, None], axis=1)
        odds = xp.exp(shifted)
        totals = xp.sum(odds, axis=1, keepdims=True)
        state = odds / totals
        gradient = 1 * state
        gradient[xp.arange(len(values)), values] -= 1
        return (xp.log(totals) - picked)[:, 0], gradient, state

    def curvatures(self, state: Array) -> Array:
        """Return p(1 - p)."""
        return state * (1 - state)

    def hessian_product(self, state: Array, change: Array) -> Array:
        """Return (diag p - p pᵀ) times the change."""
        xp = namespace(state)
        weighted = change * state
        weighted -= state * xp.sum(weighted, axis=1, keepdims=True)
        return weighted

    def responses(self, values: Array, like: Array) -> Array:
        """Return 1 in the column of each image's class."""
        return cast(cast(values, like)[:, None] == constants([*range(self.outputs)], like), like)

    def log_priors(self, values: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logarithm of each class's frequency."""
        counts = np.bincount(values, minlength=len(self.names))
        return np.asarray(np.log(np.maximum(counts, 0.5) / len(values)), np.float32)

    def fit(self, outputs: Matrix, values: NDArray[np.int64]) -> dict[str, Any]:
        """Fit the temperature (Guo et al. 2017)."""
        from headstart.targets.likelihood import fit_temperature  # noqa: PLC0415  (SciPy, which predict does without)

        return {"temperature": fit_temperature(self, outputs, values)}

    def score(self, outputs: Matrix, values: NDArray[np.int64]) -> float:
        """Return the accuracy."""
        from headstart.targets.likelihood import correct_predictions  # noqa: PLC0415  (SciPy)

        return float(correct_predictions(outputs, values).mean())

    def right(self, outputs: NDArray[Any], values: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the likeliest class is the image's."""
        return np.asarray(outputs.argmax(axis=1) == values)

    def expected(self, outputs: NDArray[Any], fitted: Mapping[str, Any]) -> NDArray[Any]:
        """Return the probabilities, in the outputs' precision."""
        scaled = outputs / fitted["temperature"]
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def residual_quantiles(self, outputs: NDArray[Any], values: NDArray[np.int64]) -> None:
        """Classes have no residuals."""

    def find_errors(self, values: NDArray[np.int64], expected: Iterable[NDArray[Any]]) -> list[LabelError]:
        """Find labels whose probability is at most ``MAX_RATIO`` of their class's frequency."""
        frequencies, begin = np.bincount(values, minlength=self.outputs) / max(1, len(values)), 0
        errors: list[tuple[float, LabelError]] = []
        for block in expected:
            of_block, places = values[begin : begin + len(block)], np.arange(len(block))
            of_labels, suggested = block[places, of_block], block.argmax(1)
            ratios = of_labels / frequencies[of_block]
            for i in np.flatnonzero((ratios <= MAX_RATIO) & (suggested != of_block)).tolist():
                figures = float(of_labels[i]), float(block[i, suggested[i]])
                names = self.names[of_block[i]], self.names[suggested[i]]
                errors.append((float(ratios[i]), LabelError(begin + i, *names, figures)))
            begin += len(block)
        return [error for _, error in sorted(errors, key=lambda each: each[0])]

    def tally(
        self,
        outputs: Matrix,
        values: NDArray[np.int64],
        units: NDArray[np.int64],
        fitted: Mapping[str, Any],  # noqa: ARG002  (figures are of the model as it is)
    ) -> "ClassTally":
        """Return what the figures are computed from."""
        from headstart.targets.class_figures import mean_auroc, sum_by_unit  # noqa: PLC0415  (SciPy)

        sums = sum_by_unit(outputs, values, self.top_k, units, int(units.max(initial=-1)) + 1)
        return ClassTally(sums, mean_auroc(outputs, values), self)

    def sums(self, outputs: NDArray[Any], values: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the sum of the images' ``contributions``."""
        from headstart.targets.class_figures import contributions  # noqa: PLC0415  (SciPy)

        return np.asarray(contributions(outputs, values, self.top_k).sum(axis=0))

    def figures_of(self, sums: NDArray[np.float64]) -> Figures:
        """Return the figures, the AUROC left out."""
        from headstart.targets.class_figures import figures  # noqa: PLC0415  (SciPy)

        return figures(sums[None], self.top_k)

    def probabilities(self, outputs: NDArray[Any], fitted: Mapping[str, Any]) -> NDArray[np.floating[Any]]:
        """Return each class's calibrated probability, (n, classes)."""
        from headstart.targets.likelihood import probabilities  # noqa: PLC0415  (SciPy)

        return probabilities(outputs, fitted["temperature"])

    def scores(
        self,
        outputs: Matrix,
        values: NDArray[np.int64],
        fitted: Mapping[str, Any],  # noqa: ARG002  (others have use for it)
    ) -> NDArray[np.bool_]:
        """Return whether the likeliest class is the image's."""
        return np.concatenate([outputs[rows].argmax(1) == values[rows] for rows in row_blocks(outputs.shape)])

    def refined_losses(
        self, outputs: Matrix, values: NDArray[np.int64], fitted: Mapping[str, Any]
    ) -> NDArray[np.float64]:
        """Return the cross-entropy after the temperature."""
        blocks = ((outputs[rows].astype(np.float64), values[rows]) for rows in row_blocks(outputs.shape))
        return np.concatenate([self.losses(block / fitted["temperature"], each) for block, each in blocks])

    def averaged(self, outputs: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logarithms of the mean of the probabilities."""
        from headstart.targets.likelihood import mean_log_probabilities  # noqa: PLC0415  (SciPy)

        return mean_log_probabilities(outputs, others)

    def conformal(self, outputs: Matrix, values: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Fit the thresholds of prediction sets by both ``METHODS``."""
        levels = []
        for method in METHODS:
            own = np.empty(len(values))
            for rows in row_blocks(outputs.shape):
                scores = nonconformity(outputs[rows], method)
                own[rows] = scores[np.arange(len(scores)), values[rows]]
            levels += [entry(method, level, threshold(own, level)) for level in LEVELS]
        return levels

    def region(self, outputs: NDArray[Any], level: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Return which classes are in each image's set, bool (n, classes)."""
        limit = level["threshold"]
        return np.asarray(nonconformity(outputs, level["method"]) <= (np.inf if limit is None else limit))

    def covered(self, outputs: Matrix, values: NDArray[np.int64], levels: Sequence[Mapping[str, Any]]) -> list[Covered]:
        """Return whether each level's sets hold the class, and how many classes they have."""
        found = [Covered(np.empty(len(values), bool), np.empty(len(values), np.int64)) for _ in levels]
        for rows in row_blocks(outputs.shape):
            scores = {method: nonconformity(outputs[rows], method) for method in {each["method"] for each in levels}}
            for level, (share, size) in zip(levels, found, strict=True):
                limit = level["threshold"]
                sets = scores[level["method"]] <= (np.inf if limit is None else limit)
                share[rows], size[rows] = sets[np.arange(len(sets)), values[rows]], sets.sum(axis=1)
        return found

    def reliability(self, outputs: Matrix, values: NDArray[np.int64], fitted: Mapping[str, Any]) -> dict[str, Any]:
        """Compare the likeliest class's probability with the accuracy, before and after the temperature."""
        found = {}
        for when, temperature in (("before", 1.0), ("after", fitted["temperature"])):
            bins = Reliability()
            for rows in row_blocks(outputs.shape):
                log_probabilities = log_softmax(outputs[rows].astype(np.float64) / temperature)
                hits = log_probabilities.argmax(1) == values[rows]
                losses = -log_probabilities[np.arange(len(hits)), values[rows]]
                bins.add(np.exp(log_probabilities.max(1)), hits, losses)
            found[when] = bins.figures()
        return found

    def shown(self, text: str) -> str:
        """Return the name of the class."""
        return text

    def cells(
        self,
        outputs: NDArray[Any],
        fitted: Mapping[str, Any],  # noqa: ARG002  (probabilities are of the model as it is)
        level: Mapping[str, Any] | None,  # noqa: ARG002  (the sets are not in the table)
    ) -> list[list[str]]:
        """Return the likeliest classes and their probabilities, not calibrated."""
        probabilities = self.probabilities(outputs, {"temperature": 1})
        return [
            [self.names[i] for i in probabilities.argmax(1)],
            [f"{each:.6f}" for each in probabilities.max(1)],
        ]

    def pairs(self, label: str, said: Sequence[Any]) -> list[tuple[str, str]]:
        """Return the class and the predicted one."""
        return [(label, said[0])]

    def mistake(self, label: str, said: Sequence[Any]) -> Mistake | None:
        """Return another class than the image's, the more probable the worse."""
        predicted, probability = said
        return None if predicted == label else Mistake(probability, label, predicted, percentage(probability))

    @classmethod
    def checked(cls, names: Sequence[str], spec: JsonValue) -> "Classes":  # noqa: ARG003  (the names say it all)
        """Return the classes of these names."""
        return cls(names)

    def checked_fit(self, entries: JsonValue) -> dict[str, Any] | None:
        """Return a stranger's temperature; None where there is none."""
        temperature = entries.get("temperature")
        return None if temperature is None else {"temperature": checked_temperature(temperature)}

    def checked_level(self, level: JsonValue) -> dict[str, Any]:
        """Return a stranger's level: its threshold is one of probabilities, to rounding."""
        return checked_entry(level, METHODS, -1e-6, 1 + 1e-6)

    def uncalibrated(self, fitted: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG002  (others have use for it)
        """Return a temperature of 1."""
        return {"temperature": 1.0}

    def answers(
        self, outputs: NDArray[Any], fitted: Mapping[str, Any], level: Mapping[str, Any] | None, top: int | None = None
    ) -> list[Answer]:
        """Return the likeliest class with its probability; a set's classes are the likeliest first."""
        probabilities = softmax(np.asarray(outputs / fitted["temperature"], np.float32))
        order = np.argsort(-outputs, axis=1, kind="stable")
        sets = None if level is None else np.take_along_axis(self.region(outputs, level), order, axis=1)
        answers = []
        for i, ranked in enumerate(order):
            parts = [(self.names[j], float(probabilities[i, j])) for j in ranked[:top]]
            region = None if sets is None else [self.names[j] for j in ranked[sets[i]]]
            answers.append(Answer(parts[0][0], parts[0][1], parts, region))
        return answers

    def prediction(self, answer: Answer) -> dict[str, Any]:
        """Return an answer by the ``answer_fields``."""
        return dict(zip(self.answer_fields, answer, strict=True))

    def agreement(
        self,
        outputs: NDArray[Any],
        others: NDArray[Any],
        values: NDArray[np.int64],  # noqa: ARG002  (others have use for it)
        fitted: Mapping[str, Any],  # noqa: ARG002
    ) -> NDArray[np.float64]:
        """Return 1 where the likeliest class is the same."""
        return np.asarray(outputs.argmax(axis=1) == others.argmax(axis=1), np.float64)

    def nll(self, loss: float) -> float:
        """Return the loss."""
        return loss


class ClassTally:
    """The figures of classes, all of them functions of sums over the images but the AUROC, which is not redrawn."""

    def __init__(self, sums: Any, auroc: float | None, target: Classes) -> None:
        """Keep ``sum_by_unit``'s, a sparse float64 (units, …), and ``mean_auroc``."""
        self._sums, self._target = sums, target
        self.fixed = {"auroc": None if auroc is None else rounded(auroc)}
        self.fractions = ("accuracy", f"top_{target.top_k}_accuracy")

    def figures(self, times: NDArray[np.float32]) -> Figures:
        """Return the figures of test sets in which units occur ``times``, float32 (test sets, units)."""
        from headstart.targets.class_figures import figures  # noqa: PLC0415  (SciPy)

        return figures((self._sums.T @ times.T).T, self._target.top_k)

    def per_part(self) -> list[dict[str, Any]]:
        """Return each class's figures on the test set as it is."""
        from headstart.targets.class_figures import per_class  # noqa: PLC0415  (SciPy)

        return per_class(self._sums.sum(axis=0), self._target.names)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities, float64 (n, classes), of logits, float32 (n, classes)."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def nonconformity(logits: NDArray[np.float32], method: str) -> NDArray[np.float64]:
    """Compute every class's nonconformity score, float64 (n, classes); the right class tends to have a low one.

    LAC (Sadinle et al. 2019) is 1 − p, whose sets are the smallest. APS (Romano et al. 2020) is the probability of all
    classes that are likelier, whose sets cover hard images better; here without its random draws, so an image has
    always the same set, never an empty one, and coverage is at least the level, maybe above it.
    """
    probabilities = softmax(logits)
    if method == "LAC":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    descending = np.take_along_axis(probabilities, order, axis=1)
    likelier: NDArray[np.float64] = np.zeros_like(probabilities)
    np.put_along_axis(likelier, order, np.cumsum(descending, axis=1) - descending, axis=1)
    return likelier
