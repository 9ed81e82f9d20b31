"""The figures of runs: of one run's answers, as a table, and as curves."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.job import names
from headstart.report.svg import style

Record = dict[str, Any]
"""A line of the records."""

TABLE = "accuracy.md"
OVERRUN = 1.05
"""Of a budget: a run that took longer is marked."""
KEY = ("set", "size", "contestant", "budget", "seed")


def score(
    files: Sequence[Path], answered: NDArray[np.str_], classes: NDArray[np.str_], probabilities: NDArray[np.float64]
) -> dict[str, Any]:
    """Return accuracy and negative log-likelihood in nats, of probabilities float64 (n, classes).

    Probabilities are clipped to float32's epsilon and divided by their sum, as scikit-learn's ``log_loss`` has it.

    Raises:
        ValueError: the answers are not those of the files, each once, or are no probabilities.
    """
    order = {name: row for row, name in enumerate(answered)}
    if sorted(order) != sorted(names(files)) or len(order) != len(answered):
        raise ValueError(f"{len(answered)} answers are not those of the {len(files)} test images")
    if not np.isfinite(probabilities).all() or not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise ValueError("the probabilities of an image do not sum to 1")
    column = {name: number for number, name in enumerate(classes)}
    rows = probabilities[[order[name] for name in names(files)]]
    labels = np.array([column[path.parent.name] for path in files])
    clipped = np.maximum(rows, np.finfo(np.float32).eps)
    right = clipped[np.arange(len(labels)), labels] / clipped.sum(1)
    return {
        "images": len(labels),
        "accuracy": round(float((rows.argmax(1) == labels).mean()), 5),
        "nll": round(float(-np.log(right).mean()), 5),
    }


def latest(records: Sequence[Record]) -> list[Record]:
    """Return the last record of each cell of the grid."""
    found = {tuple(each[name] for name in KEY): each for each in records if "seed" in each}
    return list(found.values())


def table(records: Sequence[Record]) -> str:
    """Return a Markdown table: a row for each set, budget and contestant, the best accuracy of each budget in bold.

    Means over seeds, with the range where there are several.
    """
    cells = _cells(records)
    lines = [
        "| set | minutes | contestant | accuracy | NLL | minutes used | amount | seeds | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, size, budget), contestants in cells.items():
        means = {title: _mean(runs, "accuracy") for title, runs in contestants.items() if _done(runs)}
        ranked = sorted(contestants, key=lambda title: -means.get(title, -1.0))
        for title in ranked:
            runs = _done(contestants[title])
            start = f"| {name}, {size} px | {budget:g} | {title} |"
            if not runs:
                lines.append(f"{start} | | | | | {_why(contestants[title])} |")
                continue
            accuracy = _span(runs, "accuracy", lambda value: f"{100 * value:.1f}")
            mark = "**" if means[title] == max(means.values()) else ""
            over = sum(each["seconds"] > 60 * budget * OVERRUN for each in runs)
            notes = [f"{over} of {len(runs)} overran"] if over else []
            notes += [_why(contestants[title])] if len(runs) < len(contestants[title]) else []
            amounts = _span([each | {"amount": each.get("epochs", each["amount"])} for each in runs], "amount", str)
            unit = "epochs" if "epochs" in runs[0] else "s"
            lines.append(
                f"{start} {mark}{accuracy}{mark} | {_span(runs, 'nll', '{:.3f}'.format)} "
                f"| {_span(runs, 'seconds', lambda value: f'{value / 60:.2f}')} | {amounts} {unit} | {len(runs)} "
                f"| {'; '.join(notes)} |"
            )
    return "\n".join(lines)


def leads(records: Sequence[Record]) -> str:
    """Return a Markdown table: Headstart as it comes less the best peer, in points of accuracy and in NLL."""
    lines = ["| set | minutes | best peer | accuracy, points ahead | NLL, lower by |", "|---|---|---|---|---|"]
    for (name, size, budget), contestants in _cells(records).items():
        done = {title: _done(runs) for title, runs in contestants.items() if _done(runs)}
        peers = [title for title in done if not title.startswith("headstart")]
        if "headstart" in done and peers:
            best = max(peers, key=lambda title: _mean(done[title], "accuracy"))
            accuracy = 100 * (_mean(done["headstart"], "accuracy") - _mean(done[best], "accuracy"))
            nll = min(_mean(done[title], "nll") for title in peers) - _mean(done["headstart"], "nll")
            lines.append(f"| {name}, {size} px | {budget:g} | {best} | {accuracy:+.1f} | {nll:+.3f} |")
    return "\n".join(lines)


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw test accuracy against the minutes used, a panel a set, a line a contestant; bars span the seeds."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (slow, and only needed for drawing)

    from headstart.theory.drawing import save  # noqa: PLC0415

    sets = list(dict.fromkeys((name, size) for name, size, _ in _cells(records)))
    contestants = list(dict.fromkeys(title for runs in _cells(records).values() for title in runs))
    figure = Figure(figsize=(4.4 * len(sets), 3.9), layout="constrained")
    for panel, (name, size) in zip(np.ravel(figure.subplots(1, len(sets), squeeze=False)), sets, strict=True):
        for number, title in enumerate(contestants):
            cells = [runs.get(title, []) for key, runs in _cells(records).items() if key[:2] == (name, size)]
            done = [_done(runs) for runs in cells if _done(runs)]
            if done:
                means = np.array([100 * _mean(runs, "accuracy") for runs in done])
                ends = np.array(
                    [[100 * pick(each["accuracy"] for each in runs) for runs in done] for pick in (min, max)]
                )
                minutes = [_mean(runs, "seconds") / 60 for runs in done]
                look = {key: value for key, value in style(number).items() if key != "markevery"}
                panel.errorbar(minutes, means, np.abs(ends - means), label=title, markersize=4, capsize=2, **look)
        panel.set_xscale("log")
        ticks = [budget for *key, budget in _cells(records) if tuple(key) == (name, size)]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set(title=f"{name}, {size} px", xlabel="minutes from the files to the answers", ylabel="test accuracy, %")
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    entries = {
        label: handle for panel in figure.axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def write(records: Sequence[Record], folder: Path) -> None:
    """Write the tables as ``accuracy.md`` and the curves as ``accuracy.svg``."""
    (folder / TABLE).write_text(f"{table(records)}\n\n{leads(records)}\n", encoding="utf-8")
    if any(_done(runs) for contestants in _cells(records).values() for runs in contestants.values()):
        draw(records, folder / TABLE.replace(".md", ".svg"))


def _cells(records: Sequence[Record]) -> dict[tuple[str, int, float], dict[str, list[Record]]]:
    """Group the last records by set, size and budget, then by contestant, in this order."""
    found: dict[tuple[str, int, float], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for each in sorted(latest(records), key=lambda each: (each["set"], each["size"], each["budget"])):
        found[each["set"], each["size"], each["budget"]][each["contestant"]].append(each)
    return found


def _done(runs: Sequence[Record]) -> list[Record]:
    return [each for each in runs if "accuracy" in each]


def _why(runs: Sequence[Record]) -> str:
    missing = {
        "no epoch fits" if each.get("fits") is False else f"failed: {each['error'][:80].replace('|', '/')}"
        for each in runs
        if "accuracy" not in each
    }
    return "; ".join(sorted(missing))


def _mean(runs: Sequence[Record], name: str) -> float:
    return statistics.fmean(each[name] for each in runs)


def _span(runs: Sequence[Record], name: str, show: Callable[[float], str]) -> str:
    values = [each[name] for each in runs]
    mean = show(round(statistics.fmean(values), 5) if name != "amount" else round(statistics.fmean(values)))
    return mean if len(values) == 1 else f"{mean} ({show(min(values))} to {show(max(values))})"
