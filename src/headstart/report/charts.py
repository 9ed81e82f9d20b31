"""The charts of the report. The private functions draw on matplotlib's axes and return the chart's text alternative."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from headstart.report.formatting import compact, figure, measured, percent, small_percent, strength
from headstart.report.inputs import ReportRow
from headstart.report.svg import INK, ChartStyle, chart, style
from headstart.targets.target import Measure, Target

# Columns of the ledger, and their names in the legend.
SIZES = {"norm": "‖W‖", "distance": "‖W − W₀‖"}
MOVEMENTS = {"data_movement": "by the data", "shrink": "by the penalty"}
OPEN_MARKERS: ChartStyle = {"linestyle": ":", "markerfacecolor": "none"}


def draw_charts(contents: dict[str, Any], target: Target, points: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Draw the charts from the content of the report's files, by the names that the templates know them by.

    ``points`` are those of ``Confusion``. Groups of biases and normalisation weights, whose names end in ``_free``, are
    left out: they have no penalty.
    """
    finetuning, history, trust = contents["finetune"], contents["finetune_history"], contents["evaluate_trust"]
    groups = [group for group in finetuning["groups"] if not group["group"].endswith("_free")]
    rows = contents["finetune_ledger"]
    lines = {group["group"]: [row for row in rows if row["group"] == group["group"]] for group in groups}
    size, movement = "norm and distance from the start", "change within the epoch, fraction of ‖W‖"
    ledger = [
        chart("ledger-0", "epoch", f"{size}, log scale", _by_group, lines, SIZES, compact, finetuning),
        chart("ledger-1", "epoch", f"{movement}, log scale", _by_group, lines, MOVEMENTS, small_percent, finetuning),
    ]
    if any(row["equivalent_l2"] for row in rows):
        set_to = {group["group"]: group["l2"] for group in groups}
        title = "λ equivalent to stopping here, log scale"
        ledger.append(chart("stop", "epoch", title, _early_stop, lines, set_to, finetuning))
    words, calibration, conformal = target.words, trust["calibration"], trust["conformal"]
    primary, measure = next(iter(target.measures.items()))
    sizes_title = f"{words.nouns} in the set, at most"
    titles = [f"{name} [{unit}]" if unit else name for name, unit in zip(target.names, target.units, strict=True)]
    return {
        "learning": [
            chart("loss", "epoch", words.loss, _loss, history, finetuning, words.loss),
            chart("accuracy", "epoch", f"validation {measure.title}", _accuracy, history, finetuning, primary, measure),
            chart(
                "probe", "log₁₀ λ of the probe", f"probe: validation {words.loss}", _probe, contents["probe_l2_path"]
            ),
        ],
        "ledger": ledger,
        "reliability": [
            chart(
                f"calibration-{name}",
                "mean confidence",
                f"{name}: {words.reached}",
                _reliability,
                name,
                calibration[name],
                words.reached,
            )
            for name in ("finetune", "probe")
            if "after" in calibration[name]
        ],
        "sizes": [chart("sizes", sizes_title, "fraction of test images", _sizes, conformal, words.noun)]
        if all("sizes" in entry for entry in conformal)
        else [],
        "numbers": [
            each
            for i, (title, of_number) in enumerate(zip(titles, points, strict=False))
            for each in (
                chart(f"number-{i}", f"true {title}", f"predicted {title}", _points, of_number),
                chart(f"tenths-{i}", f"tenths of {title}", "MAE", _tenths, calibration, target.names[i]),
            )
        ],
    }


def _loss(axes: Axes, history: Sequence[ReportRow], finetuning: ReportRow, title: str) -> str:
    train = [(row["epoch"], row["train_loss"]) for row in history if row["train_loss"] is not None]
    refined_loss = "val_refined_loss"
    columns = {"val_loss": "Validation", refined_loss: "After the best temperature"}
    columns = {name: described for name, described in columns.items() if name in history[0]}
    validation, refined = (
        [(row["epoch"], row[name]) for row in history if name in row] for name in ("val_loss", refined_loss)
    )
    values = [value for _, value in train + validation + refined]
    lines = {"validation": validation, "training": train, "validation, refined": refined}
    for i, (name, line) in enumerate(lines.items()):
        if line:
            axes.plot(*zip(*line, strict=True), label=name, **style(i))
    if min(values) > 0 and max(values) > 10 * min(values):
        _log(axes, compact)
        axes.set_title(f"{title}, log scale", loc="left")
    _epochs(axes, finetuning)
    trained = f" Training: {figure(train[0][1])} in epoch 1, {figure(train[-1][1])} in the last." if train else ""
    courses = (f"{name}: {_course(history, column, finetuning, figure)}." for column, name in columns.items())
    return f"Loss by epoch. {' '.join(courses)}{trained}"


def _accuracy(axes: Axes, history: Sequence[ReportRow], finetuning: ReportRow, primary: str, measure: Measure) -> str:
    column = f"val_{primary}"
    axes.plot([row["epoch"] for row in history], [row[column] for row in history], **style(0))
    if measure.as_percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    _epochs(axes, finetuning)
    course = _course(history, column, finetuning, lambda value: measured(value, measure))
    return f"Validation {measure.title} by epoch: {course}."


def _probe(axes: Axes, path: Sequence[ReportRow]) -> str:
    best = min(path, key=lambda row: row["val_loss"])
    first, last, chosen = (strength(10 ** row["log10_l2"]) for row in (path[0], path[-1], best))
    axes.plot([row["log10_l2"] for row in path], [row["val_loss"] for row in path], **style(0))
    _mark(axes, best["log10_l2"], "chosen")
    lowest = f"lowest, {figure(best['val_loss'])}, at {chosen}"
    return f"The probe's validation loss along λ, from {first} to {last}: {lowest}."


def _course(history: Sequence[ReportRow], name: str, finetuning: ReportRow, write: Callable[[float], str]) -> str:
    best = next(row for row in history if row["epoch"] == finetuning["best_epoch"])
    return (
        f"{write(history[0][name])} at the start, {write(best[name])} after epoch {best['epoch']}, which was kept, "
        f"{write(history[-1][name])} after the last, {history[-1]['epoch']}"
    )


def _epochs(axes: Axes, finetuning: ReportRow) -> None:
    """Mark the best epoch, and the one after which training was stopped early."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    _mark(axes, finetuning["best_epoch"], "kept")
    if finetuning["stopped_early"] and finetuning["epochs"] != finetuning["best_epoch"]:
        _mark(axes, finetuning["epochs"], "stopped", side="left", linestyle="-")


def _mark(axes: Axes, x: float, text: str, *, side: Literal["left", "right"] = "right", linestyle: str = ":") -> None:
    axes.axvline(x, color=INK, linewidth=0.9, linestyle=linestyle)
    axes.text(x, 1.02, text, horizontalalignment=side, fontsize=8, transform=axes.get_xaxis_transform())


def _log(axes: Axes, write: Callable[[float], str]) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: write(value))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _by_group(
    axes: Axes,
    lines: dict[str, list[ReportRow]],
    measures: dict[str, str],
    write: Callable[[float], str],
    finetuning: ReportRow,
) -> str:
    """Draw two measures of each group, the second dotted with open markers; a logarithmic axis cannot show zeros."""
    described = []
    for i, (group, rows) in enumerate(lines.items()):
        for (name, title), own_style in zip(measures.items(), ({}, OPEN_MARKERS), strict=True):
            values = [(row["epoch"], row[name]) for row in rows if row[name] > 0]
            if values:
                axes.plot(*zip(*values, strict=True), label=f"{group}, {title}", **{**style(i), **own_style})
                (epoch, first), (_, last) = values[0], values[-1]
                described.append(f"{group}, {title}: {write(first)} in epoch {epoch}, {write(last)} at the end")
    _log(axes, write)
    _epochs(axes, finetuning)
    return f"By epoch. {'; '.join(described)}."


def _early_stop(axes: Axes, lines: dict[str, list[ReportRow]], set_to: dict[str, float], finetuning: ReportRow) -> str:
    described: list[str] = []
    drawn: set[tuple[str, ...]] = set()
    for i, (group, rows) in enumerate(lines.items()):
        course = [(row["epoch"], row["equivalent_l2"]) for row in rows if row["equivalent_l2"]]
        values = tuple(f"{value:.6g}" for _, value in course)
        if course and values not in drawn:  # groups with the same learning rate share a line
            label = f"stopping, {group}" if drawn else "stopping"
            drawn.add(values)
            axes.plot(*zip(*course, strict=True), label=label, **{**style(i), "color": INK})
            kept = dict(course).get(finetuning["best_epoch"])
            described.append(f"stopping is like λ = {strength(kept or course[-1][1])} for {group}")
        if set_to[group]:
            axes.axhline(set_to[group], label=f"set for {group}", **{**style(i), "marker": ""})
            described.append(f"the λ set for {group} is {strength(set_to[group])}")
    _log(axes, strength)
    _epochs(axes, finetuning)
    return f"The λ that an early stop resembles, by epoch: {'; '.join(described)}."


def _reliability(axes: Axes, name: str, calibration: ReportRow, reached: str) -> str:
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    for i, when in enumerate(("before", "after")):
        bins = calibration[when]["bins"]
        label = f"{when} scaling, ECE {figure(calibration[when]['ece'])}"
        x, y, images = zip(*((b["confidence"], b["accuracy"], b["pictures"]) for b in bins), strict=True)
        line = style(1 - i)
        axes.plot(x, y, label=label, **{**line, "linewidth": 0.8, "marker": ""})
        axes.scatter(x, y, [3 + 120 * n / sum(images) for n in images], color=line["color"], marker=line["marker"])
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    what = "are correct" if reached == "accuracy" else f"is the {reached}"
    described = "; ".join(
        f"at confidence {percent(b['confidence'], 0)}, {percent(b['accuracy'], 0)} of {b['pictures']} {what}"
        for b in calibration["after"]["bins"]
    )
    return f"Reliability of {name} after temperature scaling: {described}."


def _sizes(axes: Axes, conformal: Sequence[ReportRow], noun: str) -> str:
    """Draw the fraction of sets that have at most as many classes."""
    described = []
    for i, entry in enumerate(conformal):
        counts = {int(size): images for size, images in entry["sizes"].items()}
        sizes, total = range(max(counts) + 2), sum(counts.values())
        fractions = [sum(n for size, n in counts.items() if size <= most) / total for most in sizes]
        name = f"{entry['method']} {percent(entry['level'], 0)}"
        axes.step(sizes, fractions, where="post", label=name, **{**style(i), "marker": ""})
        described.append(f"{name} has {percent(counts.get(1, 0) / total)} with one {noun}, at most {max(counts)}")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return f"Sizes of the prediction sets: {'; '.join(described)}."


def _points(axes: Axes, points: NDArray[np.float64]) -> str:
    """Draw predicted numbers against true ones, and where they would be right."""
    ends = [points.min(), points.max()]
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":")
    axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.5, linewidths=0, color=style(0)["color"])
    extremes = points[points[:, 0].argsort()][[0, -1]]
    lowest, highest = (f"of {compact(truth)}, {compact(said)} was said" for truth, said in extremes)
    return (
        f"Predicted against true numbers of {len(points)} images: of the lowest, {lowest}; of the highest, {highest}."
    )


def _tenths(axes: Axes, calibration: ReportRow, name: str) -> str:
    """Draw the mean absolute error of both models in each tenth of the true numbers."""
    described = []
    for i, model in enumerate(("finetune", "probe")):
        parts = [part for part in calibration[model]["parts"] if part["number"] == name]
        axes.plot(range(len(parts)), [part["mae"] for part in parts], label=model, **style(i))
        errors = ", ".join(f"{part['class']}: {compact(part['mae'])}" for part in parts)
        described.append(f"of {model} {errors}")
    labels = [part["class"].removeprefix(f"{name} ") for part in parts]
    axes.set_xticks(range(len(parts)), labels, rotation=45, horizontalalignment="right", fontsize=7)
    axes.set_ylim(bottom=0)
    return f"Mean absolute error by tenths of the true number: {'; '.join(described)}."
