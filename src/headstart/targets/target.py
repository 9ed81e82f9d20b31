"""What is learned from an image: the mechanism that all stages use, and no stage knows a target by its name.

A target says how values are written, what the model's head computes, its loss, its figures, how sure it is, and how an
answer is shown. Each of ``classes``, ``labels``, ``number`` and ``grade`` is one; another would be a module like these,
a line in ``KINDS`` and its name under ``prepare.target``.

Arrays named ``values`` have a row for each image, in the target's own form (``encode``); ``outputs``, float (n,
``outputs``), are what the head computes. What training and the probe call works on NumPy's arrays and torch's alike,
by what the array API standard lists; the rest is NumPy alone, so that predict needs nothing else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headstart.core.blocks import Matrix, row_blocks
from headstart.core.json_value import JsonValue
from headstart.targets.arrays import Array

LossKind = Literal["auto", "focal", "asymmetric", "huber", "quantile"]
Link = Literal["softmax", "logistic", "identity"]
MAX_RATIO = 0.05
"""What a model expects of a label, over the label's frequency, at or below which the label counts as an error."""
Figures = dict[str, NDArray[np.float64]]
"""Figures by name, float64 (test sets,) each."""
Values = NDArray[Any]
"""Of images, one row each: int64 (n,) of classes and grades; float32 (n, …) of labels and numbers, NaN if unknown."""


@dataclass(frozen=True)
class LossOptions:
    """How a loss differs from the plain one: ``finetune.loss`` and the keys beside it.

    Attributes:
        kind: ``auto`` is the plain loss.
        weights: factors on the loss by class, float (classes,), or of a label where it is there; None: all 1.
        shift: what is added to the outputs in training alone (logit adjustment), float (outputs,); None: nothing.
        smoothing: the fraction of the loss that is spread over all classes, or over both values of a label.
    """

    kind: LossKind = "auto"
    weights: Array | None = None
    shift: Array | None = None
    smoothing: float = 0.0


PLAIN = LossOptions()
FOCUS = 2.0
"""The exponent γ of the focal loss (Lin et al. 2017)."""


class Measure(NamedTuple):
    """A figure of a model, as tables and sentences have it.

    Attributes:
        title: as tables call it, with its unit in brackets.
        higher_is_better: whether more is better.
        unit: of the figure, if it has one.
        as_percent: whether it is shown as a percentage.
        about: what it is, for a note below a table; after a colon if it goes by another name there.
    """

    title: str
    higher_is_better: bool
    unit: str = ""
    as_percent: bool = False
    about: str = ""

    @property
    def name(self) -> str:
        """The title without the unit."""
        return self.title.removesuffix(f" [{self.unit}]")

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.higher_is_better else -1


class Words(NamedTuple):
    """How the report speaks of a target.

    Attributes:
        noun: what a name of ``Target.names`` is of, in the singular.
        nouns: the same in the plural.
        loss: what the loss is called.
        short_loss: the same in a sentence.
        second: the heading of the second of the measures that are compared.
        reached: what calibrated probabilities are equal to.
        instead: what conformal prediction gives instead of a plain answer, a sentence.
        covered: the heading of the share that the conformal levels promise.
        size: the heading of the mean size of what they give.
        methods: what each conformal method does, the end of a sentence.
        breakdown: the heading of the figures of each group of ``Target.breakdown``, and of its names.
        parts: the headings of the figures that ``Tally.per_part`` has, by their keys.
        bar: which of them is drawn as a bar, empty for none.
        of_probe: which of them the table also has of the probe.
        images: which counts images, and its heading.
        notes: terms of that table, and what they are.
        worst: the mistakes that are shown first, with what is said of their pictures: ``gallery``.
        flawless: what is so where there is no mistake.
        temperature: what scaling by temperatures does, a sentence.
    """

    noun: str
    nouns: str
    loss: str
    short_loss: str
    second: str
    reached: str
    instead: str
    covered: str
    size: str
    methods: Mapping[str, str]
    breakdown: tuple[str, str]
    parts: Mapping[str, str]
    bar: str
    of_probe: str
    images: tuple[str, str]
    notes: Mapping[str, str]
    worst: str
    gallery: str
    flawless: str
    temperature: str


class Covered(NamedTuple):
    """What a conformal level gives of images.

    Attributes:
        share: of what is true that is in the image's set, (n,), or in each of its intervals, (n, numbers): bool, or
            float with NaN where there is nothing to be found.
        size: of the set, int64 (n,), or the widths of the intervals, float64 (n, numbers).
    """

    share: NDArray[Any]
    size: NDArray[Any]


class Mistake(NamedTuple):
    """An answer that is wrong, in words; ``badness`` orders mistakes, the worst has the highest."""

    badness: float
    label: str
    predicted: str
    note: str


def rounded(figure: float | np.floating[Any]) -> float | None:
    """Return a figure as JSON has it; null where it is not defined."""
    return round(float(figure), 6) if np.isfinite(figure) else None


def percentage(fraction: float) -> str:
    """Return a fraction as a percentage in words."""
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def best_first(models: dict[str, dict[str, Any]], name: str, sign: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the models, with their figures, in descending order of a figure, or ascending if the sign is -1."""

    def order(model: tuple[str, dict[str, Any]]) -> float:
        figure = model[1][name]
        return np.inf if figure is None else -sign * figure

    return sorted(models.items(), key=order)


class Tally(Protocol):
    """What images add to a model's figures, kept so that test sets can be redrawn from them.

    Attributes:
        fractions: the figures that are fractions of the images.
        fixed: further figures, of the test set as it is, which are not redrawn.
    """

    @property
    def fractions(self) -> Sequence[str]: ...  # noqa: D102  (above)

    @property
    def fixed(self) -> Mapping[str, float | None]: ...  # noqa: D102  (above)

    def figures(self, times: NDArray[np.float32]) -> Figures:
        """Return the figures of test sets in which units occur ``times``, float32 (test sets, units)."""

    def per_part(self) -> list[dict[str, Any]]:
        """Return the figures of each of the target's names on the test set as it is, in their order; JSON values."""


class Reader(Protocol):
    """Reads what a source has of each image, and makes the target of it.

    Attributes:
        columns: where it is, in sources that are tables.
        is_name: whether it is a name that many images share, as a class's.
    """

    columns: Sequence[str]
    is_name: bool

    def read(self, cells: Sequence[Any]) -> str:
        """Return the text that the manifest has, from a cell for each of the columns.

        Raises:
            CellError: says what is wrong with the cells, and how to write them.
        """

    def target(self, texts: Iterable[str]) -> "Target":
        """Return the target of all images, whose distinct texts are given; raises UserError if there is none."""


MakeReader = Callable[[Sequence[str]], Reader]
"""From the names of the columns to what reads the target there."""


class LabelError(NamedTuple):
    """A likely label error: the image's place, what it is labelled as and what a model suggests, as texts.

    ``figures`` are those that ``Target.error_figures`` names.
    """

    place: int
    label: str
    suggested: str
    figures: tuple[float, ...]


class Strata(NamedTuple):
    """Groups of images of which every split needs some: their names, and pairs of an image and a group that it is in.

    Both arrays are int64 (pairs,); an image may be in several groups or in none. ``noun`` is what one of them is.
    """

    names: Sequence[str]
    images: NDArray[np.int64]
    groups: NDArray[np.int64]
    noun: str = "class"


class Target(Protocol):
    """What is learned from an image."""

    @property
    def kind(self) -> str:
        """The value of ``prepare.target``."""

    @property
    def nouns(self) -> str:
        """What several of the names are, in messages."""

    @property
    def names(self) -> Sequence[str]:
        """Of the classes, labels, numbers or grades, for messages and tables."""

    @property
    def units(self) -> Sequence[str]:
        """Of the numbers, empty where there is none; else all empty."""

    @property
    def outputs(self) -> int:
        """The width of the head."""

    @property
    def tied(self) -> bool:
        """Whether the rows of the head's weight are equal, so that its outputs differ by their biases alone."""

    @property
    def has_classes(self) -> bool:
        """Whether there are classes, labels or grades: then a loss can be weighted, adjusted and smoothed."""

    @property
    def link(self) -> Link:
        """What gives the outputs of the mean ``responses``, and with it the plain loss, whose canonical link it is.

        ``softmax``: the cross-entropy; ``logistic``: binary ones, summed; ``identity``: squared errors, summed.
        """

    @property
    def losses_known(self) -> Sequence[LossKind]:
        """The kinds of ``LossOptions`` that make sense."""

    @property
    def calibrated_loss(self) -> str:
        """The figure that says how well images are told apart, however sure the model is: a measure, or a loss."""

    @property
    def measures(self) -> Mapping[str, Measure]:
        """What is computed of a model; the first one decides which model is better."""

    @property
    def compared(self) -> Sequence[str]:
        """The measures of which models' differences are shown, the one that decides first."""

    @property
    def scored(self) -> str:
        """The measure that is the mean of the images' ``scores``."""

    @property
    def discrete(self) -> bool:
        """Whether answers are made of names, so that they can be confused; else they are numbers."""

    @property
    def ordered(self) -> bool:
        """Whether the names are in an order that means something."""

    @property
    def beside(self) -> Sequence[str]:
        """What ``pairs`` has beside the names."""

    @property
    def words(self) -> Words:
        """How the report speaks of it."""

    def measure(self, name: str) -> Measure:
        """Return one of the measures, or of what ``tally`` has beside them."""

    def ranked_within(self, top_k: int) -> "Target":
        """Return the target with which an image counts that is among so many of the likeliest, where that counts."""

    def spec(self) -> dict[str, Any]:
        """Return what ``make_target`` makes it from, beside its names; plain JSON values."""

    def encode(self, text: str) -> Any:
        """Return the value that a text of the manifest stands for: a row of ``values``."""

    def values(self, texts: Iterable[str], count: int) -> Values:
        """Return the values of ``count`` images."""

    def strata(self, values: Values) -> Strata:
        """Return what each split needs images of."""

    def breakdown(self, values: Values) -> list[Strata]:
        """Return groups of images that figures are also computed of, those of each number by themselves."""

    def trained(self, values: Values) -> "Target":
        """Return the target for these values of the training images; raises UserError if they can't be learned."""

    def with_loss(self, kind: LossKind) -> "Target":
        """Return the target of a model that is trained by this loss: itself, unless that needs other outputs."""

    # The loss, of training and of the probe. Outputs and values may be torch's.

    def losses(self, outputs: Array, values: Array, options: LossOptions = PLAIN) -> Array:
        """Return each image's loss, (n,); what is unknown adds nothing."""

    def derivatives(self, outputs: Array, values: Array) -> tuple[Array, Array, Array]:
        """Return the plain loss (n,), its gradient (n, outputs), and a state (n, …) that the next two need."""

    def curvatures(self, state: Array) -> Array:
        """Return the diagonal of the Hessian of each image's loss by its outputs, or a bound: (n, outputs)."""

    def hessian_product(self, state: Array, change: Array) -> Array:
        """Return the Hessian of each image's loss by its outputs, times a change of these, (n, outputs) both."""

    def responses(self, values: Array, like: Array) -> Array:
        """Return what the outputs are fitted to, (n, outputs), of the type of ``like``; NaN where it is unknown.

        1 or 0 for each class, label, or being above a grade; numbers as they are standardised.
        """

    # Imbalance.

    def loss_weights(self, values: Values) -> NDArray[np.float32] | None:
        """Return the ``weights`` of balanced classes; None where there is no such thing."""

    def log_priors(self, values: Values) -> NDArray[np.float32] | None:
        """Return the outputs of a model that knows how common everything is; None where there is no such thing."""

    def rarities(self, values: Values) -> NDArray[np.float64]:
        """Return for each image a weight, float64 (n,), in proportion to which balanced sampling draws it."""

    # Figures. ``fitted`` is what ``fit`` returned of validation.

    def fit(self, outputs: Matrix, values: Values) -> dict[str, Any]:
        """Fit temperatures and thresholds on validation; plain JSON values."""

    def score(self, outputs: Matrix, values: Values) -> float:
        """Return the first of the ``measures``, of a model as it is."""

    def right(self, outputs: NDArray[Any], values: Values) -> NDArray[np.bool_]:
        """Return whether the answer is right about each pair of an image and a group that ``strata`` has, (pairs,)."""

    def expected(self, outputs: NDArray[Any], fitted: Mapping[str, Any]) -> NDArray[Any]:
        """Return the mean of the ``responses`` that calibrated outputs stand for, (n, outputs)."""

    def residual_quantiles(self, outputs: NDArray[Any], values: Values) -> list[list[float]] | None:
        """Return for each number the quantiles of its ``responses`` less the outputs; None where there are none."""

    @property
    def error_figures(self) -> Sequence[str]:
        """The names of what ``find_errors`` has of each label error, for tables."""

    def find_errors(self, values: Values, expected: Iterable[NDArray[Any]]) -> list[LabelError]:
        """Find values that a model contradicts with confidence, the worst first.

        ``expected`` are blocks of what ``expected`` returns, in the order of the values, of a model that did not learn
        from these images.
        """

    def tally(self, outputs: Matrix, values: Values, units: NDArray[np.int64], fitted: Mapping[str, Any]) -> Tally:
        """Return what the ``measures`` are computed from; ``units``, int64 (n,), numbers the unit of each image."""

    def scores(self, outputs: Matrix, values: Values, fitted: Mapping[str, Any]) -> NDArray[Any]:
        """Return each image's score, (n,): bool where there is a right and a wrong, else float64."""

    def refined_losses(self, outputs: Matrix, values: Values, fitted: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return each image's plain loss after the temperatures, (n,)."""

    def averaged(self, outputs: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs whose answer is the mean of two answers, (n, outputs) all."""

    # How sure a model is.

    def conformal(self, outputs: Matrix, values: Values) -> list[dict[str, Any]]:
        """Fit thresholds on validation: ``method``, ``level`` and ``threshold`` of each, plain JSON values."""

    def covered(self, outputs: Matrix, values: Values, levels: Sequence[Mapping[str, Any]]) -> list[Covered]:
        """Return what each conformal level gives of images."""

    def reliability(self, outputs: Matrix, values: Values, fitted: Mapping[str, Any]) -> dict[str, Any]:
        """Measure how far answers can be believed, plain JSON values.

        Of probabilities it is ``before`` and ``after`` the temperatures, each as ``Reliability.figures``; of numbers
        ``parts``, how far they are off in each part of ``breakdown``.
        """

    # Answers as tables have them. ``said`` has a cell for each of the columns that ``suffixes`` names.

    @property
    def suffixes(self) -> Mapping[str, Callable[[str], Any]]:
        """The columns of a model's answers, by what follows its name, and what reads their cells."""

    def shown(self, text: str) -> str:
        """Return a text of the manifest as the table of predictions has it: a ``label``."""

    def cells(
        self, outputs: NDArray[Any], fitted: Mapping[str, Any], level: Mapping[str, Any] | None
    ) -> list[list[str]]:
        """Return the columns of a model's answers."""

    def pairs(self, label: str, said: Sequence[Any]) -> list[tuple[str, str]]:
        """Return what is true of an image, each with what was said instead, or of it."""

    def mistake(self, label: str, said: Sequence[Any]) -> Mistake | None:
        """Return what is wrong with an answer, None if nothing is."""

    # What an exported model says. Raises of ``checked…`` are UserErrors that name the file and the key.

    @property
    def answer_fields(self) -> Sequence[str]:
        """The fields of ``inference.postprocess.Prediction`` that ``prediction`` fills."""

    @property
    def agreement_title(self) -> str:
        """What ``agreement`` measures, as tables call it."""

    @property
    def hub_tags(self) -> Sequence[str]:
        """The Hugging Face hub's names for the task; the first is a pipeline's where the hub has one."""

    @classmethod
    def checked(cls, names: Sequence[str], spec: JsonValue) -> "Target":
        """Return the target that a stranger's ``spec`` describes."""

    def checked_fit(self, entries: JsonValue) -> dict[str, Any] | None:
        """Return what ``fit`` returned, from among a stranger's entries; None where nothing was fitted."""

    def checked_level(self, level: JsonValue) -> dict[str, Any]:
        """Return one of the levels that ``conformal`` returned, a stranger's."""

    def uncalibrated(self, fitted: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return ``fitted`` for probabilities as they were trained, with the same answers; None: nothing was fitted."""

    def answers(
        self, outputs: NDArray[Any], fitted: Mapping[str, Any], level: Mapping[str, Any] | None, top: int | None = None
    ) -> "list[Answer]":
        """Return what a model says of each image; ``top`` limits the parts that are the likeliest, None: all."""

    def prediction(self, answer: "Answer") -> dict[str, Any]:
        """Return an answer by the ``answer_fields``."""

    def agreement(
        self, outputs: NDArray[Any], others: NDArray[Any], values: Values, fitted: Mapping[str, Any]
    ) -> NDArray[np.float64]:
        """Return how much of the answer for each image is the same in other outputs, 0 to 1, float64 (n,).

        ``values`` are what is true: what is the same may depend on how well the outputs know it.
        """

    def nll(self, loss: float) -> float:
        """Return a mean loss as a negative log-likelihood in nats, less a constant."""


@runtime_checkable
class Summable(Protocol):
    """A target whose measures are functions of sums over the images: of many classes no output needs to be kept."""

    def sums(self, outputs: NDArray[Any], values: Values) -> NDArray[np.float64]:
        """Return what images add to the sums, float64 (sums,)."""

    def figures_of(self, sums: NDArray[np.float64]) -> Figures:
        """Return the figures, float64 (1,) each."""


def mean_loss(target: Target, outputs: Matrix, values: Values, temperature: float = 1.0) -> float:
    """Return the mean over images of the plain loss, of outputs float (n, outputs) divided by the temperature."""
    blocks = ((np.asarray(outputs[rows], np.float64) / temperature, values[rows]) for rows in row_blocks(outputs.shape))
    return float(sum(target.losses(block, of_block).sum() for block, of_block in blocks) / len(values))


def validation_figures(target: Target, outputs: Matrix, values: Values) -> dict[str, float]:
    """Return what reports have of every model: ``val_loss``, and ``val_`` and the name of the first measure."""
    measure = next(iter(target.measures))
    return {"val_loss": mean_loss(target, outputs, values), f"val_{measure}": target.score(outputs, values)}


class Answer(NamedTuple):
    """What a model says of an image, as predict and serve show it.

    Attributes:
        value: the class, grade, labels with their probabilities, or numbers: as JSON has them.
        probability: of a class or a grade.
        parts: names with their probabilities or numbers, the likeliest first.
        region: what includes the truth as often as the conformal level says: names, or an interval for each number;
            None where the bundle has no levels.
    """

    value: Any
    probability: float | None
    parts: list[tuple[str, float]]
    region: list[Any] | None


@dataclass(frozen=True)
class PredictedNumber:
    """One number that a model says of an image.

    Attributes:
        name: of the number.
        value: in its unit.
        unit: empty where it has none.
        interval: its ends include the truth as often as the conformal level says; an end is None where validation was
            too small for the level. None where the bundle has no levels.
    """

    name: str
    value: float
    unit: str
    interval: list[float | None] | None
