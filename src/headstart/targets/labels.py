"""Any number of labels an image: each present, absent or unknown, with a logistic loss of its own."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix, by_blocks, row_blocks
from headstart.core.errors import UserError
from headstart.core.json_value import JsonValue
from headstart.core.problems import some
from headstart.core.text import normalize_label
from headstart.targets.arrays import Array, cast, known, mean_logits, namespace, sigmoid, softplus
from headstart.targets.cells import CellError, read_flag
from headstart.targets.conformal import LEVELS, checked_entry, covered_by_blocks, entry
from headstart.targets.named import Named
from headstart.targets.ranking import Ranking
from headstart.targets.reliability import Reliability
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
    Strata,
    Words,
    rounded,
)
from headstart.targets.temperature import best_temperatures, checked_temperature

POSITIVE_FOCUS, NEGATIVE_FOCUS, MARGIN = 1.0, 4.0, 0.05
"""Of the asymmetric loss (Ridnik et al. 2021): γ+, γ- and the probability below which an absent label costs nothing."""
MOST_WEIGHT = 100.0
"""Of a label that is there: rarer ones would make the steps too large."""


SEPARATORS = ";|,/"
NONE = "(none)"
"""What is said instead of a label that is missed, and true of an image without labels."""
UNKNOWN = "?"
"""Before the name of a label of which it is unknown whether an image has it, in the table of predictions."""


class LabelsReader:
    """Reads labels: from one column, with a separator between them or as a list, or from columns of 0 and 1."""

    is_name = False

    def __init__(self, columns: Sequence[str], separator: str, *, fold: bool) -> None:
        """``fold``: whether names that differ in case alone are one label."""
        self.columns, self._separator, self._fold = columns, separator, fold
        self._joined, self._apart = Counter[str](), 0

    def read(self, cells: Sequence[Any]) -> str:
        """Return JSON: 1 for labels that are present, null for unknown ones, in the order of their names."""
        if len(self.columns) > 1:
            row = {}
            for column, cell in zip(self.columns, cells, strict=True):
                try:
                    flag = read_flag(cell)
                except CellError as error:
                    raise error.at(column) from None
                if flag != 0:
                    row[column] = flag
            if len(row) == len(self.columns) and not any(row.values()):
                raise CellError(
                    "no label is known", None, "write 0 or 1 in some, or leave the image out", *self.columns
                )
            return json.dumps(row, ensure_ascii=False, sort_keys=True)
        (cell,) = cells
        if cell is None or isinstance(cell, float):
            cell = "" if cell is None or cell != cell else f"{cell:g}"  # noqa: PLR0124  (NaN)
        parts = [str(each) for each in cell] if isinstance(cell, list | tuple) else self._split(str(cell))
        names = {name.casefold() if self._fold else name for part in parts if (name := normalize_label(part))}
        return json.dumps(dict.fromkeys(sorted(names), 1), ensure_ascii=False)

    def _split(self, cell: str) -> list[str]:
        parts = cell.split(self._separator) if self._separator.strip() else cell.split()
        self._apart += len(parts) > 1
        self._joined.update(set(SEPARATORS).intersection(cell) - {self._separator})
        return parts

    def target(self, texts: Iterable[str]) -> "Labels":
        """Return the labels that occur, or the columns in their order; raises UserError where they look wrong."""
        if len(self.columns) > 1:
            return Labels(self.columns)
        names = sorted({name for text in texts for name in json.loads(text)})
        if not self._apart and self._joined:
            (other, count), *_ = self._joined.most_common()
            raise UserError(
                f"prepare.label_separator: no cell of the column {self.columns[0]} has {self._separator!r}, and "
                f"{count:,} have {other!r}: if that separates labels, set it to {other!r}"
            )
        folded = Counter(name.casefold() for name in names)
        if twins := [name for name in names if folded[name.casefold()] > 1]:
            raise UserError(
                f"prepare: the labels {some(map(repr, twins[:2]))} differ in case alone: correct them, or set "
                "prepare.label_case: fold to make them one"
            )
        if len(names) < 2:
            what = f"there is a single label, {names[0]!r}" if names else "no image has a label"
            raise UserError(
                f"prepare.target: {what}: is prepare.label_separator right? One label or none: columns of 0/1"
            )
        return Labels(names)


@dataclass(frozen=True)
class Labels(Named):
    """Any number of labels an image; ``values`` are float32 (n, labels): 1 if present, 0 if absent, NaN if unknown.

    The loss is Σ over the known labels of the binary cross-entropy, so that each label is a problem of its own.
    """

    names: Sequence[str]
    kind: ClassVar[str] = "labels"
    nouns: ClassVar[str] = "labels"
    answer_fields: ClassVar[tuple[str, ...]] = ("labels", "top", "prediction_set")
    agreement_title: ClassVar[str] = "same labels"
    hub_tags: ClassVar[tuple[str, ...]] = ("image-classification", "multi-label-image-classification")
    losses_known: ClassVar[tuple[LossKind, ...]] = ("auto", "focal", "asymmetric")
    tied: ClassVar[bool] = False
    has_classes: ClassVar[bool] = True
    calibrated_loss: ClassVar[str] = "log_loss"
    link: ClassVar[Link] = "logistic"
    error_figures: ClassVar[tuple[str, ...]] = ("label_probability", "suggested_probability")
    measures: ClassVar[Mapping[str, Measure]] = {
        "mean_ap": Measure(
            "mean AP",
            higher_is_better=True,
            about="the average precision of each label, which is high where the images with the label come before the "
            "others; the mean over the labels that some test images have and others lack.",
        ),
        "macro_f1": Measure(
            "macro F1",
            higher_is_better=True,
            about="the mean over the labels of F1, with thresholds that were chosen on validation.",
        ),
        "micro_f1": Measure("micro F1", higher_is_better=True, about="the F1 of all labels of all images together."),
        "auroc": Measure(
            "AUROC",
            higher_is_better=True,
            about="the probability that an image with the label scores higher than one without; the mean over the "
            "labels.",
        ),
        "subset_accuracy": Measure(
            "subset accuracy",
            higher_is_better=True,
            as_percent=True,
            about="the fraction of the images that were given exactly their labels.",
        ),
        "log_loss": Measure(
            "log loss",
            higher_is_better=False,
            about="mean −log of the probability of what is true, over all known labels.",
        ),
    }
    compared: ClassVar[Sequence[str]] = ("mean_ap", "log_loss")
    scored: ClassVar[str] = "subset_accuracy"
    discrete: ClassVar[bool] = True
    ordered: ClassVar[bool] = False
    beside: ClassVar[Sequence[str]] = (NONE,)
    suffixes: ClassVar[Mapping[str, Callable[[str], Any]]] = {"": str, "_probability": str}
    words: ClassVar[Words] = Words(
        noun="label",
        nouns="labels",
        loss="binary cross-entropy",
        short_loss="log loss",
        second="Log loss",
        reached="fraction with the label",
        instead="Instead of the labels above their thresholds, conformal risk control gives a set that misses no "
        "more of an image's labels, on average, than promised.",
        covered="Labels found",
        size="Labels in a set, mean",
        methods={
            "CRC": "takes every label whose probability is at least one threshold, the highest that keeps the promise. "
            "With too few validation images for a promise, every set has all labels."
        },
        breakdown=("Label by label", "Images with"),
        parts={
            "average_precision": "Average precision",
            "auroc": "AUROC",
            "precision": "Precision",
            "recall": "Recall",
            "f1": "F1",
            "log_loss": "Log loss",
        },
        bar="average_precision",
        of_probe="average_precision",
        images=("support", "Test images with it"),
        notes={
            "Precision": "the fraction of the images that are given the label which have it.",
            "Recall": "the fraction of the images with the label that are given it.",
            "F1": "their harmonic mean. A dash: not defined, since no test image has the label, or none was given it.",
        },
        worst="worst mistakes",
        gallery="Those with the most labels that were missed, though they are there, or invented, though they are not.",
        flawless="every test image is given exactly its labels",
        temperature="Temperature scaling divides each label's logit by one number, which changes a model's "
        "confidence and no order of the images.",
    )

    @property
    def outputs(self) -> int:
        """A logit for each label."""
        return len(self.names)

    def encode(self, text: str) -> NDArray[np.float32]:
        """Return a row of values from JSON: 1 for labels that are present, null for unknown ones, no others."""
        row = np.zeros(len(self.names), np.float32)
        for name, value in json.loads(text).items():
            row[self._number[name]] = np.nan if value is None else value
        return row

    def values(self, texts: Iterable[str], count: int) -> NDArray[np.float32]:
        """Return the values of images, float32 (n, labels)."""
        values = np.empty((count, len(self.names)), np.float32)
        for row, text in zip(values, texts, strict=True):
            row[:] = self.encode(text)
        return values

    def strata(self, values: NDArray[np.float32]) -> Strata:
        """Return which images have each label."""
        images, labels = np.nonzero(values == 1)
        return Strata(self.names, images, labels, "label")

    def trained(self, values: NDArray[np.float32]) -> "Labels":
        """Return itself; raises UserError for a label that all training images have, or none, or that is unknown."""
        present, is_known = known(values)
        positive, total = present.sum(axis=0), is_known.sum(axis=0)
        for what, wrong in {
            "is known of no training image": total == 0,
            "is in no training image": positive == 0,
            "is in every training image": positive == total,
        }.items():
            if wrong.any():
                names = some(repr(name) for name, each in zip(self.names, wrong, strict=True) if each)
                raise UserError(f"prepare: what {what} can't be learned: {names}; add images, or leave the label out")
        return self

    def losses(self, outputs: Array, values: Array, options: LossOptions = PLAIN) -> Array:
        """Return the sum over an image's known labels of the binary cross-entropy, or its focal or asymmetric kin."""
        xp = namespace(outputs)
        present, is_known = known(values)
        if options.smoothing:
            present = present * (1 - options.smoothing) + options.smoothing / 2
        if options.shift is not None:
            outputs = outputs + options.shift
        if_present, if_absent = softplus(-outputs), softplus(outputs)  # -log p and -log(1 - p)
        if options.kind == "focal":
            probabilities = sigmoid(outputs)
            if_present = if_present * (1 - probabilities) ** FOCUS
            if_absent = if_absent * probabilities**FOCUS
        if options.kind == "asymmetric":
            probabilities = sigmoid(outputs)
            if_present = if_present * (1 - probabilities) ** POSITIVE_FOCUS
            shifted = xp.clip(probabilities - MARGIN, 0, None)
            if_absent = -xp.log1p(-shifted) * shifted**NEGATIVE_FOCUS
        if options.weights is not None:
            if_present = if_present * options.weights
        return xp.sum((present * if_present + (1 - present) * if_absent) * is_known, axis=1)

    def derivatives(self, outputs: Array, values: Array) -> tuple[Array, Array, Array]:
        """Return the loss, its gradient, and p(1 - p) of the known labels as the state."""
        present, is_known = known(values)
        probabilities = sigmoid(outputs)
        gradient = (probabilities - present) * is_known
        return self.losses(outputs, values), gradient, probabilities * (1 - probabilities) * is_known

    def curvatures(self, state: Array) -> Array:
        """Return p(1 - p)."""
        return state

    def hessian_product(self, state: Array, change: Array) -> Array:
        """Return the product with the Hessian, which is diagonal."""
        return state * change

    def responses(self, values: Array, like: Array) -> Array:
        """Return the values."""
        return cast(values, like)

    def loss_weights(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return for each label how many images are without it, over those that have it; at most ``MOST_WEIGHT``."""
        present, is_known = known(values)
        positive = np.maximum(present.sum(axis=0), 1)
        weights = (is_known.sum(axis=0) - present.sum(axis=0)) / positive
        return np.asarray(np.minimum(weights, MOST_WEIGHT), np.float32)

    def log_priors(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logit of each label's frequency among the images where it is known; half an image is added."""
        present, is_known = known(values.astype(np.float64))
        positive, total = present.sum(axis=0), is_known.sum(axis=0)
        return np.asarray(np.log((positive + 0.5) / (total - positive + 0.5)), np.float32)

    def rarities(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return one over the count of an image's rarest label, or of the images without any."""
        present = known(values)[0] > 0
        counts = np.maximum(present.sum(axis=0), 1)
        rarest = np.where(present, 1 / counts, 0).max(axis=1)
        empty = ~present.any(axis=1)
        rarest[empty] = 1 / max(1, int(empty.sum()))
        return np.asarray(rarest, np.float64)

    def fit(self, outputs: Matrix, values: NDArray[np.float32]) -> dict[str, Any]:
        """Fit each label's temperature, and the probability from which on it is given: that with the highest F1."""
        temperatures = best_temperatures(lambda temperature: self._each_loss(outputs, values, temperature))
        probabilities = by_blocks(lambda block: sigmoid(block.astype(np.float64) / temperatures), outputs)
        thresholds = [
            _best_f1_threshold(probabilities[of_label, i], values[of_label, i])
            for i, of_label in enumerate(~np.isnan(values).T)
        ]
        return {"temperatures": temperatures.tolist(), "thresholds": thresholds}

    @staticmethod
    def _each_loss(outputs: Matrix, values: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
        """Return each label's mean loss, (labels,), of outputs divided by a temperature."""
        total, count = np.zeros((2, outputs.shape[1]))
        for rows in row_blocks(outputs.shape):
            scaled, (present, is_known) = outputs[rows].astype(np.float64) / temperature, known(values[rows])
            total += ((softplus(scaled) - present * scaled) * is_known).sum(axis=0)
            count += is_known.sum(axis=0)
        return np.asarray(total / np.maximum(count, 1))

    def probabilities(self, outputs: NDArray[Any], fitted: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return each label's calibrated probability, float64 (n, labels)."""
        return np.asarray(sigmoid(outputs.astype(np.float64) / np.asarray(fitted["temperatures"])))

    def score(self, outputs: Matrix, values: NDArray[np.float32]) -> float:
        """Return the mean average precision of the labels that some images have and some have not, 0 without any."""
        precisions = []
        for column, scores in zip(values.T, outputs[:].T, strict=True):
            of_label = ~np.isnan(column)
            present = column[of_label] > 0
            if present.any() and not present.all():
                ranking = Ranking(scores[of_label].astype(np.float64), present, np.zeros(len(present), np.int64))
                precisions.append(ranking.figures(np.ones((1, 1), np.float32))[0][0])
        return float(np.mean(precisions)) if precisions else 0.0

    def right(self, outputs: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether each label that is there is likelier than not."""
        return np.asarray(outputs[values == 1] > 0)

    def expected(self, outputs: NDArray[Any], fitted: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return the probabilities."""
        return self.probabilities(outputs, fitted)

    def residual_quantiles(self, outputs: NDArray[Any], values: NDArray[np.float32]) -> None:
        """Labels have no residuals."""

    def find_errors(self, values: NDArray[np.float32], expected: Iterable[NDArray[Any]]) -> list[LabelError]:
        """Find labels that are there or absent with at most ``MAX_RATIO`` of the frequency of that as probability."""
        present, is_known = known(values)
        frequency, begin = present.sum(axis=0) / np.maximum(is_known.sum(axis=0), 1), 0
        errors: list[tuple[float, LabelError]] = []
        for block in expected:
            given = values[begin : begin + len(block)]
            probabilities = np.where(given == 1, block, 1 - block)
            ratios = probabilities / np.maximum(np.where(given == 1, frequency, 1 - frequency), 1e-12)
            for i, j in np.argwhere((ratios <= MAX_RATIO) & ~np.isnan(given)).tolist():
                texts = self.names[j], f"not {self.names[j]}"
                texts = texts if given[i, j] == 1 else texts[::-1]
                figures = float(probabilities[i, j]), 1 - float(probabilities[i, j])
                errors.append((float(ratios[i, j]), LabelError(begin + i, *texts, figures)))
            begin += len(block)
        return [error for _, error in sorted(errors, key=lambda each: each[0])]

    def tally(
        self, outputs: Matrix, values: NDArray[np.float32], units: NDArray[np.int64], fitted: Mapping[str, Any]
    ) -> "LabelTally":
        """Return what the figures are computed from."""
        probabilities = by_blocks(partial(self.probabilities, fitted=fitted), outputs)
        return LabelTally(probabilities, values, units, np.asarray(fitted["thresholds"]))

    def scores(self, outputs: Matrix, values: NDArray[np.float32], fitted: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Return whether an image is given exactly its labels, of those that are known."""

        def exact(block: NDArray[Any], of_block: NDArray[np.float32]) -> NDArray[np.bool_]:
            given = self.probabilities(block, fitted) >= np.asarray(fitted["thresholds"])
            return np.asarray(((given == (of_block == 1)) | np.isnan(of_block)).all(axis=1))

        return by_blocks(exact, outputs, values)

    def refined_losses(
        self, outputs: Matrix, values: NDArray[np.float32], fitted: Mapping[str, Any]
    ) -> NDArray[np.float64]:
        """Return the loss after the temperatures."""

        def losses(block: NDArray[Any], of_block: NDArray[np.float32]) -> NDArray[np.float64]:
            scaled = block.astype(np.float64) / np.asarray(fitted["temperatures"])
            return np.asarray(self.losses(scaled, of_block.astype(np.float64)))

        return by_blocks(losses, outputs, values)

    def averaged(self, outputs: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of the mean of the probabilities."""
        return np.asarray(mean_logits(outputs, others), np.float32)

    def conformal(self, outputs: Matrix, values: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Control the fraction of an image's labels that are missed, on average: conformal risk control.

        Angelopoulos et al. 2022, arXiv 2208.02814: of all sets {p ≥ t} the smallest is taken whose risk R, on n images
        with a label, has (n R + 1) / (n + 1) ≤ α. ``threshold`` is t; null where all labels must be in the set.
        """
        present = known(values)[0] > 0
        images = int(present.any(axis=1).sum())
        blocks = (sigmoid(outputs[rows].astype(np.float64))[present[rows]] for rows in row_blocks(outputs.shape))
        probabilities = np.concatenate([*blocks, np.empty(0)])
        weight = (present / np.maximum(present.sum(axis=1, keepdims=True), 1))[present]
        order = np.argsort(probabilities, kind="stable")
        missed = np.cumsum(weight[order])  # n R of a t just above each
        levels = []
        for level in LEVELS:
            bound = (1 - level) * (images + 1) - 1
            first = int(np.searchsorted(missed, bound + 1e-9, side="right"))
            limit = float(probabilities[order][first]) if bound >= 0 and first < len(order) else np.inf
            levels.append(entry("CRC", level, limit))
        return levels

    def region(self, outputs: NDArray[Any], level: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Return which labels are in each image's set, bool (n, labels)."""
        limit = level["threshold"]
        probabilities = sigmoid(outputs.astype(np.float64))
        return np.asarray(np.ones(outputs.shape, bool) if limit is None else probabilities >= limit)

    def covered(
        self, outputs: Matrix, values: NDArray[np.float32], levels: Sequence[Mapping[str, Any]]
    ) -> list[Covered]:
        """Return the share of each image's labels that are in its set, and how many labels that has."""

        def covered(block: NDArray[Any], of_block: NDArray[np.float32], level: Mapping[str, Any]) -> Covered:
            present, sets = known(of_block)[0] > 0, self.region(block, level)
            with np.errstate(invalid="ignore"):
                return Covered((present & sets).sum(axis=1) / present.sum(axis=1), sets.sum(axis=1))

        return covered_by_blocks(covered, outputs, values, levels)

    def reliability(self, outputs: Matrix, values: NDArray[np.float32], fitted: Mapping[str, Any]) -> dict[str, Any]:
        """Compare probabilities with how often the labels are there, of all and ``per_class`` of each label."""
        plain = {"temperatures": [1.0] * self.outputs}
        found: dict[str, Any] = {}
        rows: list[dict[str, Any]] = [
            {"class": name, "temperature": temperature, "threshold": threshold}
            for name, temperature, threshold in zip(
                self.names, fitted["temperatures"], fitted["thresholds"], strict=True
            )
        ]
        for when, used in (("before", plain), ("after", fitted)):
            of_all, of_each = Reliability(), [Reliability() for _ in self.names]
            for block in row_blocks(outputs.shape):
                probabilities, is_there = self.probabilities(outputs[block], used), values[block] == 1
                losses = -np.log(np.maximum(np.where(is_there, probabilities, 1 - probabilities), 1e-12))
                arrays, is_known = (probabilities, is_there, losses), ~np.isnan(values[block])
                of_all.add(*(each[is_known] for each in arrays))
                for i, of_label in enumerate(of_each):
                    of_label.add(*(each[is_known[:, i], i] for each in arrays))
            found[when] = of_all.figures()
            for row, of_label in zip(rows, of_each, strict=True):
                figures = of_label.figures()
                row |= {f"nll_{when}": figures["nll"], f"ece_{when}": figures["ece"]}
        return found | {"per_class": rows}

    @cached_property
    def _separator(self) -> str:
        """What is between labels in the table of predictions: in none of their names."""
        return next((each for each in SEPARATORS if not any(each in name for name in self.names)), "\n")

    def shown(self, text: str) -> str:
        """Return the labels that are there, and the unknown ones after a question mark."""
        row = json.loads(text)
        return self._separator.join(name if value else f"{UNKNOWN}{name}" for name, value in row.items())

    def cells(
        self,
        outputs: NDArray[Any],
        fitted: Mapping[str, Any],
        level: Mapping[str, Any] | None,  # noqa: ARG002  (the sets are not in the table)
    ) -> list[list[str]]:
        """Return the labels that are given, the likeliest first, and their calibrated probabilities."""
        answers, names, probabilities = self.answers(outputs, fitted, None), list[str](), list[str]()
        for answer in answers:
            of_given = [(name, f"{p:.4f}") for name, p in answer.parts if name in answer.value]
            names.append(self._separator.join(name for name, _ in of_given))
            probabilities.append(self._separator.join(p for _, p in of_given))
        return [names, probabilities]

    def _compare(self, label: str, said: Sequence[Any]) -> tuple[list[str], list[str], list[str]]:
        """Return the labels of an image, those of them that are missed, and those that are invented."""
        cells = label.split(self._separator) if label else []
        there = [cell for cell in cells if not cell.startswith(UNKNOWN)]
        unknown = [cell.removeprefix(UNKNOWN) for cell in cells if cell.startswith(UNKNOWN)]
        given = said[0].split(self._separator) if said[0] else []
        missed = [name for name in there if name not in given]
        return there, missed, [name for name in given if name not in there and name not in unknown]

    def pairs(self, label: str, said: Sequence[Any]) -> list[tuple[str, str]]:
        """Return each label of an image with itself or, if it is missed, with ``NONE``, then with invented ones."""
        there, missed, invented = self._compare(label, said)
        if not there:
            return [(NONE, name) for name in invented or (NONE,)]
        return [(name, NONE if name in missed else name) for name in there] + [
            (name, other) for name in there for other in invented
        ]

    def mistake(self, label: str, said: Sequence[Any]) -> Mistake | None:
        """Return missed and invented labels, the more the worse."""
        there, missed, invented = self._compare(label, said)
        wrong = {"missed": missed, "invented": invented}
        note = "; ".join(f"{what} {', '.join(names)}" for what, names in wrong.items() if names)
        given = [name for name in there if name not in missed] + invented
        if not note:
            return None
        return Mistake(len(missed) + len(invented), ", ".join(there) or NONE, ", ".join(given) or NONE, note)

    @classmethod
    def checked(cls, names: Sequence[str], spec: JsonValue) -> "Labels":  # noqa: ARG003  (the names say it all)
        """Return the labels of these names."""
        return cls(names)

    def checked_fit(self, entries: JsonValue) -> dict[str, Any] | None:
        """Return a stranger's temperatures and thresholds; None where there are none."""
        temperatures, count = entries.get("temperatures"), len(self.names)
        if temperatures is None:
            return None
        return {
            "temperatures": [checked_temperature(each) for each in temperatures.list(count, count)],
            "thresholds": [each.number(0, 1) for each in entries["thresholds"].list(count, count)],
        }

    def checked_level(self, level: JsonValue) -> dict[str, Any]:
        """Return a stranger's level: its threshold is a probability."""
        return checked_entry(level, ("CRC",), 0, 1)

    def uncalibrated(self, fitted: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return temperatures of 1, and the thresholds of these probabilities; 0.5 where nothing was fitted."""
        ones = [1.0] * len(self.names)
        if fitted is None:
            return {"temperatures": ones, "thresholds": [0.5] * len(ones)}
        thresholds = np.asarray(fitted["thresholds"], np.float64)
        with np.errstate(divide="ignore"):  # of the thresholds 0 and 1
            logits = (np.log(thresholds) - np.log1p(-thresholds)) * fitted["temperatures"]
        return {"temperatures": ones, "thresholds": sigmoid(logits).tolist()}

    def answers(
        self, outputs: NDArray[Any], fitted: Mapping[str, Any], level: Mapping[str, Any] | None, top: int | None = None
    ) -> list[Answer]:
        """Return the labels above their thresholds, the likeliest first."""
        probabilities, thresholds = self.probabilities(outputs, fitted), np.asarray(fitted["thresholds"])
        sets = None if level is None else self.region(outputs, level)
        answers = []
        for i, row in enumerate(probabilities):
            order = np.argsort(-row, kind="stable").tolist()
            parts = [(self.names[j], float(row[j])) for j in order[:top]]
            given = {self.names[j]: float(row[j]) for j in order if row[j] >= thresholds[j]}
            region = None if sets is None else [self.names[j] for j in order if sets[i, j]]
            answers.append(Answer(given, None, parts, region))
        return answers

    def prediction(self, answer: Answer) -> dict[str, Any]:
        """Return an answer by the ``answer_fields``."""
        return {"labels": answer.value, "top": answer.parts, "prediction_set": answer.region}

    def agreement(
        self,
        outputs: NDArray[Any],
        others: NDArray[Any],
        values: NDArray[np.float32],  # noqa: ARG002  (others have use for it)
        fitted: Mapping[str, Any],
    ) -> NDArray[np.float64]:
        """Return the fraction of labels that are given by both, or by none."""
        thresholds = np.asarray(fitted["thresholds"])
        given, by_others = (self.probabilities(each, fitted) >= thresholds for each in (outputs, others))
        return np.asarray((given == by_others).mean(axis=1))

    def nll(self, loss: float) -> float:
        """Return the loss."""
        return loss


def _best_f1_threshold(probabilities: NDArray[np.float64], present: NDArray[np.float32]) -> float:
    """Return the probability between two images from which on the F1 is highest; 0.5 where no image has the label."""
    if not present.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    hits = np.cumsum(present[order], dtype=np.float64)
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + hits[-1])
    f1[:-1][ranked[:-1] == ranked[1:]] = 0  # equal ones are on the same side
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


class LabelTally:
    """The figures of several labels; those that rank images are computed anew for each test set."""

    fractions: ClassVar[Sequence[str]] = ("subset_accuracy",)
    fixed: ClassVar[Mapping[str, float | None]] = {}

    def __init__(
        self,
        probabilities: NDArray[np.float64],
        values: NDArray[np.float32],
        units: NDArray[np.int64],
        thresholds: NDArray[np.float64],
    ) -> None:
        """Sum up calibrated probabilities (n, labels) and values, the units (n,), and the thresholds (labels,)."""
        present, is_known = known(values.astype(np.float64))
        given = (probabilities >= thresholds) * is_known
        clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
        losses = -(present * np.log(clipped) + (1 - present) * np.log(1 - clipped)) * is_known
        subset = (given == present).all(axis=1)
        columns = [given * present, given, present, is_known, losses, subset[:, None], np.ones((len(values), 1))]
        each = np.concatenate(columns, axis=1)
        self._sums = np.zeros((int(units.max(initial=-1)) + 1, each.shape[1]))
        np.add.at(self._sums, units, each)
        self._labels = values.shape[1]
        self._ranks = [
            Ranking(probabilities[of_label, i], values[of_label, i] > 0, units[of_label])
            for i, of_label in enumerate(is_known.T > 0)
        ]

    def _parts(self, times: NDArray[np.float32]) -> list[NDArray[np.float64]]:
        sums = times[:, : len(self._sums)] @ self._sums
        return np.split(sums, [i * self._labels for i in range(1, 6)], axis=1)

    def figures(self, times: NDArray[np.float32]) -> Figures:
        """Return the figures; means over the labels that occur in a test set, each with and without it."""
        hits, given, present, is_known, losses, images = self._parts(times)
        occurs = (present > 0) & (present < is_known)
        precision, area = (
            np.stack(each, axis=1) for each in zip(*(r.figures(times) for r in self._ranks), strict=True)
        )
        f1 = 2 * hits / np.maximum(given + present, 1e-12)

        def mean(each: NDArray[np.float64]) -> NDArray[np.float64]:
            total = np.where(occurs, each, 0).sum(axis=1)
            return np.asarray(np.divide(total, occurs.sum(axis=1), out=np.full(len(each), np.nan), where=occurs.any(1)))

        return {
            "mean_ap": mean(precision),
            "macro_f1": mean(f1),
            "micro_f1": 2 * hits.sum(1) / np.maximum((given + present).sum(1), 1e-12),
            "auroc": mean(area),
            "subset_accuracy": images[:, 0] / images[:, 1],
            "log_loss": losses.sum(1) / is_known.sum(1),
        }

    def per_part(self) -> list[dict[str, Any]]:
        """Return each label's figures on the test set as it is."""
        times = np.ones((1, len(self._sums)), np.float32)
        hits, given, present, is_known, losses, _ = (each[0] for each in self._parts(times))
        rows: list[dict[str, Any]] = []
        for i, ranking in enumerate(self._ranks):
            precision, area = (float(each[0]) for each in ranking.figures(times))
            rows.append(
                {
                    "support": int(present[i]),
                    "known": int(is_known[i]),
                    "average_precision": rounded(precision),
                    "auroc": rounded(area),
                    "precision": rounded(hits[i] / given[i]) if given[i] else None,
                    "recall": rounded(hits[i] / present[i]) if present[i] else None,
                    "f1": rounded(2 * hits[i] / (given[i] + present[i])) if present[i] else None,
                    "log_loss": rounded(losses[i] / is_known[i]) if is_known[i] else None,
                }
            )
        return rows
